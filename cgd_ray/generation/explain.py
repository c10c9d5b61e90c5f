"""Why a stage is generated anew: its table's description beside the nearest one that the root holds."""

from dataclasses import replace
from itertools import zip_longest

from cgd_ray.config.recipe import Recipe
from cgd_ray.data.prepare import prompts_table
from cgd_ray.stages.stage import Stage
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import JsonDict
from cgd_ray.storage.tables import Table

_LONGEST = 60
_REFERENCES = {"None": "none", "answer": "teacher", "reference": "dataset"}  # settings, by what the critic is shown


def explain(store: Store, recipe: Recipe, stages: list[Stage]) -> list[str]:
    """A line for the prompts and one per stage: whether the table is there, else what sets it apart from the nearest.

    Rows are those of their prompts: where a prompt's text is another, they are generated though their stage's table is
    there.
    """
    prompts, content = prompts_table(recipe, store)
    lines = [f"prompts: {_explain(prompts, content, 'is there')}"]
    there = "is there; only rows that lack a result are generated"
    return lines + [f"{stage.name}: {_explain(stage.results, stage.description, there)}" for stage in stages]


def set_apart(table: Table, description: JsonDict) -> str | None:
    """What sets a table that is not there apart from the nearest one of the root; None where there is none."""
    others = _described(table) if table.description() is None else {}
    if not others:
        return None
    differences = {name: _differences(table.stage, other, description) for name, other in others.items()}
    nearest = min(differences, key=lambda name: (len(differences[name]), name))
    return f"a new table; what differs from {nearest}: " + "; ".join(differences[nearest])


def _explain(table: Table, description: JsonDict, there: str) -> str:
    if table.description() is not None:
        return f"table {table.fingerprint} {there}"
    return set_apart(table, description) or "the first table of its kind under this root"


def _described(table: Table) -> dict[str, JsonDict]:
    folder = f"tables/{table.stage}"
    found = {name: replace(table, fingerprint=name).description() for name in table.store.folders(folder)}
    # That of prompts has counts beside what it was made of.
    return {name: description.get("content", description) for name, description in found.items() if description}


def _differences(stage: str, before: JsonDict, now: JsonDict) -> list[str]:
    flat_before, flat_now = _flat(before), _flat(now)
    keys = [key for key in sorted(flat_before | flat_now) if flat_before.get(key) != flat_now.get(key)]
    return [_difference(stage, key, flat_before.get(key), flat_now.get(key)) for key in keys]


def _difference(stage: str, key: str, before: object, now: object) -> str:
    if key.startswith("upstream."):
        texts = f"{key.removeprefix('upstream.')}s"
        if before and now:
            return f"its {texts} are others"
        return f"it is given {texts}" if now else f"it is given no {texts} any more"
    if key == "reference":
        before, now = (_REFERENCES.get(str(column), column) for column in (before, now))
    key = _setting(stage, key)
    if isinstance(before, str) and isinstance(now, str) and max(len(before), len(now)) > _LONGEST:
        lines = zip_longest(before.splitlines(), now.splitlines())
        number = next((number for number, (old, new) in enumerate(lines, 1) if old != new), 1)
        return f"{key} (from line {number})"
    return f"{key} is {now!r}, was {before!r}"


def _setting(stage: str, key: str) -> str:
    """Where the recipe says what a description has under this key."""
    role = "student" if stage == "draft" else "teacher"
    group, _, rest = key.partition(".")
    match group:
        case "sampling":
            return f"generation.{stage}.{rest}"
        case "engine":
            return f"{role}.engine.{rest}"
        case "model":
            return "student.model" if role == "student" else "teacher.engine.model"
        case "reference":
            return "generation.critique.reference"
        case "template":
            return f"generation.prompts, {stage}.jinja"
    return key


def _flat(tree: JsonDict, prefix: str = "") -> JsonDict:
    flat: JsonDict = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
