"""Filters: small functions from a generated row to None (keep) or the reason to drop it."""

from collections.abc import Callable
from typing import Any

from cgd_ray.config.generation import CurationSection
from cgd_ray.grading.grade import grade
from cgd_ray.grading.mentions import mentions_inputs

Row = dict[str, Any]
Filter = Callable[[Row], str | None]


def build_filters(section: CurationSection) -> list[tuple[str, Filter]]:
    """The recipe's filters in the order of their cost, each with the stage whose text it judges."""
    filters: list[tuple[str, Filter]] = [("refine", _empty)]
    if section.require_verdict:
        filters.append(("critique", _no_verdict))
    limit = section.max_refinement_tokens
    if limit is not None:
        filters.append(("refine", lambda row: "over-long" if row["refine_tokens"] > limit else None))
    if section.drop_mentions:
        filters.append(("refine", _mentions))
    if section.require_correct:
        filters.append(("refine", _wrong))
    return filters


def _empty(row: Row) -> str | None:
    return None if all(row[name].strip() for name in ("draft", "critique", "refine")) else "empty"


def _no_verdict(row: Row) -> str | None:
    return None if row["verdict"] else "no verdict"


def _mentions(row: Row) -> str | None:
    return "mentions its inputs" if mentions_inputs(row["refine"], row["prompt"]) else None


def _wrong(row: Row) -> str | None:
    if row["reference"] is None:
        return "no reference"
    return None if grade(row["refine"], row["reference"]).correct else "wrong"
