"""Why a stage is generated anew: its table's description beside the nearest one that the root holds."""

import json
from itertools import zip_longest

from cgd_ray.engines.stage import Stage
from cgd_ray.storage.filesystem import Store

_LONGEST = 60


def explain(store: Store, stages: list[Stage]) -> list[str]:
    """One line per stage: whether its table is there, else what sets it apart from the nearest one."""
    return [f"{stage.name}: {_explain(store, stage)}" for stage in stages]


def set_apart(store: Store, stage: Stage) -> str | None:
    """What sets a stage without a table apart from the nearest table of the root; None where there is none."""
    others = _described(store, stage) if stage.results.description() is None else {}
    if not others:
        return None
    differences = {name: _differences(other, stage.description) for name, other in others.items()}
    nearest = min(differences, key=lambda name: (len(differences[name]), name))
    return f"a new table; what differs from {nearest}: " + "; ".join(differences[nearest])


def _explain(store: Store, stage: Stage) -> str:
    if stage.results.description() is not None:
        return f"table {stage.results.fingerprint} is there; only rows that lack a result are generated"
    return set_apart(store, stage) or "the first table of this stage under this root"


def _described(store: Store, stage: Stage) -> dict[str, dict[str, object]]:
    folder = f"tables/{stage.name}"
    names = [name for name in store.folders(folder) if store.exists(f"{folder}/{name}/table.json")]
    return {name: json.loads(store.read(f"{folder}/{name}/table.json")) for name in names}


def _differences(before: dict[str, object], now: dict[str, object]) -> list[str]:
    flat_before, flat_now = _flat(before), _flat(now)
    keys = [key for key in sorted(flat_before | flat_now) if flat_before.get(key) != flat_now.get(key)]
    return [_difference(key, flat_before.get(key), flat_now.get(key)) for key in keys]


def _difference(key: str, before: object, now: object) -> str:
    if key.startswith("upstream."):
        return f"its {key.removeprefix('upstream.')}s are others"
    if isinstance(before, str) and isinstance(now, str) and max(len(before), len(now)) > _LONGEST:
        lines = zip_longest(before.splitlines(), now.splitlines())
        number = next((number for number, (old, new) in enumerate(lines, 1) if old != new), 1)
        return f"{key} (from line {number})"
    return f"{key} is {now!r}, was {before!r}"


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
