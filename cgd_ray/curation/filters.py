"""Filters: small functions from a generated row to None (keep) or the reason to drop it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from cgd_ray.config.generation import CurationSection
from cgd_ray.config.training import TrainingSection
from cgd_ray.grading.answers import gold_of
from cgd_ray.grading.grade import grade
from cgd_ray.grading.mentions import mentions_inputs
from cgd_ray.methods import Target, targets_of
from cgd_ray.prompts.conversation import history_of, transcript

Row = dict[str, Any]
Filter = Callable[[Row], str | None]


def targets(training: TrainingSection) -> set[Target]:
    """Return the texts that the method learns, and those that the compared methods learn."""
    return targets_of(training.methods) | {"refine"}


def build_filters(section: CurationSection, learnt: set[Target]) -> list[tuple[str, Filter]]:
    """Return the recipe's filters in order of cost, each with the stage whose text it checks.

    Every learnt text must exist and pass: compared methods train on the same rows, all filtered alike.
    """
    filters: list[tuple[str, Filter]] = [(name, partial(_empty, name)) for name in ("draft", "critique", "refine")]
    if "answer" in learnt:
        filters.append(("answer", lambda row: None if row["answer"] else "missing"))
    if "reference" in learnt:
        filters.append(("reference", lambda row: None if row["reference"] else "missing"))
    if section.require_verdict:
        filters.append(("critique", _no_verdict))
    limit = section.max_refinement_tokens
    if limit is not None:
        filters.append(("refine", lambda row: "over-long" if row["refine_tokens"] > limit else None))
    for name in ("refine", "answer"):
        if name in learnt:
            filters += _judges(section, name)
    return filters


def _judges(section: CurationSection, name: str) -> list[tuple[str, Filter]]:
    filters: list[tuple[str, Filter]] = []
    if section.drop_mentions:
        filters.append((name, partial(_mentions, name)))
    if section.require_correct:
        filters.append((name, lambda row: _wrong(row[name], row["reference"])))
    return filters


def _empty(name: str, row: Row) -> str | None:
    return None if row[name].strip() else "empty"


def _mentions(name: str, row: Row) -> str | None:
    asked = transcript(row["prompt"], history_of(row.get("history")))
    return "mentions its inputs" if mentions_inputs(row[name], asked) else None


def _no_verdict(row: Row) -> str | None:
    return None if row["verdict"] else "no verdict"


def _wrong(text: str, reference: str | None) -> str | None:
    if reference is None:
        return "no reference"
    if not gold_of(reference):
        return "reference without an answer"
    return None if grade(text, reference).correct else "wrong"
