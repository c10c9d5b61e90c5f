"""Explain why a stage is generated again: compare its table's description with the nearest one under the root."""

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
    """Return a line for the prompts and one per stage: the table exists, or how it differs from the nearest one.

    Rows belong to their prompts: if a prompt's text changed, its rows are generated even though their stage's table
    exists.
    """
    prompts, content = prompts_table(recipe, store)
    lines = [f"prompts: {_explain(prompts, content, 'is there')}"]
    there = "is there; only rows that lack a result are generated"
    return lines + [f"{stage.name}: {_explain(stage.results, stage.description, there)}" for stage in stages]


def set_apart(table: Table, description: JsonDict) -> str | None:
    """Return how a missing table differs from the nearest one under the root; None if there is nothing to compare."""
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
    # The description of prompts has counts beside its content.
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
    """Return the recipe key that sets this key of a description."""
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
