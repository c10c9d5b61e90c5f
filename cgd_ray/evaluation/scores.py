"""From graded answers to figures: accuracy with intervals, the paired difference, and the quality of generated rows."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cgd_ray.config.recipe import Recipe
from cgd_ray.evaluation.statistics import accuracy_interval, paired_difference
from cgd_ray.grading.grade import grade
from cgd_ray.grading.mentions import mentions_inputs
from cgd_ray.grading.overlap import copy_rate


@dataclass(frozen=True)
class Graded:
    """One model's answers to the same questions, in one order. All arrays have shape (questions,)."""

    correct: np.ndarray  # right and not truncated
    boxed: np.ndarray  # ... and given in a box
    truncated: np.ndarray
    mentions: np.ndarray  # speaks of a critique or draft that no user wrote
    tokens: np.ndarray


def grade_results(results: pa.Table, rows: pa.Table) -> Graded:
    """Grade results (RESULTS schema) against the rows' references. A truncated or missing answer is wrong."""
    by_id = {row["prompt_id"]: row for row in results.to_pylist()}
    columns: dict[str, list[Any]] = defaultdict(list)
    for row in rows.to_pylist():
        result = by_id.get(row["prompt_id"], {"status": "failed", "text": None, "completion_tokens": 0})
        ok = result["status"] == "ok"
        mark = grade(result["text"], row["reference"]) if ok else None
        columns["correct"].append(mark is not None and mark.correct)
        columns["boxed"].append(mark is not None and mark.correct and mark.boxed)
        columns["truncated"].append(result["status"] == "truncated")
        columns["mentions"].append(mentions_inputs(result["text"] or "", row["prompt"]))
        columns["tokens"].append(result["completion_tokens"] or 0)
    return Graded(**{name: np.array(values) for name, values in columns.items()})


def accuracy_table(graded: Graded, rows: pa.Table, confidence: float) -> dict[str, Any]:
    """Accuracy over all questions and by group (seen and novel kinds, then each kind)."""
    groups = {"all": np.ones(len(rows), bool)}
    novel = np.array(rows["novel"].to_pylist(), bool)
    if novel.any():
        groups |= {"seen kinds": ~novel, "novel kinds": novel}
    return {
        "questions": len(rows),
        "accuracy": {name: _accuracy(graded.correct[mask], confidence) for name, mask in groups.items()},
        "accuracy_boxed": float(graded.boxed.mean()),
        "truncated": float(graded.truncated.mean()),
        "mentions_inputs": float(graded.mentions.mean()),
        "mean_tokens": float(graded.tokens.mean()),
    }


def compare(base: Graded, trained: Graded, recipe: Recipe) -> dict[str, Any]:
    """The paired difference of trained minus base over the same questions, with its interval."""
    section = recipe.evaluation
    difference = paired_difference(
        base.correct, trained.correct, section.confidence, section.resamples, seed=recipe.run.seed
    )
    return asdict(difference)


def generated_quality(results: dict[str, pa.Table], references: dict[str, str]) -> dict[str, Any]:
    """Accuracy of drafts, answers and refinements, flips between draft and refinement, and of the critic's verdicts.

    Only rows whose stage succeeded are counted; `rows` says how many.
    """
    marks = {name: _marks(table, references) for name, table in results.items() if name != "critique"}
    quality: dict[str, Any] = {
        name: {"rows": len(found), "accuracy": _mean(list(found.values()))} for name, found in marks.items()
    }
    both = [(marks["draft"][key], right) for key, right in marks["refine"].items() if key in marks["draft"]]
    quality["flips"] = {
        "rows": len(both),
        "fixed": sum(not before and after for before, after in both),
        "broken": sum(before and not after for before, after in both),
    }
    verdicts = [
        (row["verdict"] == "right") == marks["draft"][key]
        for row in results["critique"].to_pylist()
        if row["verdict"] and (key := (row["prompt_id"], row["sample"])) in marks["draft"]
    ]
    quality["verdict"] = {"rows": len(verdicts), "accuracy": _mean(verdicts)}
    quality["copy_rate"] = {
        f"{source} to refinement": _copied(results[source], results["refine"])
        for source in ("critique", "answer")
        if source in results
    }
    return quality


def _copied(source: pa.Table, refinements: pa.Table) -> float | None:
    """Mean share of the refinements' n-grams that stand in the source text of the same row."""
    texts = {(row["prompt_id"], row["sample"]): row["text"] for row in source.to_pylist() if row["status"] == "ok"}
    rates = [
        copy_rate(texts[key], row["text"])
        for row in refinements.to_pylist()
        if row["status"] == "ok" and (key := (row["prompt_id"], row["sample"])) in texts
    ]
    return float(np.mean(rates)) if rates else None


def _marks(table: pa.Table, references: dict[str, str]) -> dict[tuple[str, int], bool]:
    return {
        (row["prompt_id"], row["sample"]): grade(row["text"], references[row["prompt_id"]]).correct
        for row in table.to_pylist()
        if row["status"] == "ok" and row["prompt_id"] in references
    }


def _accuracy(correct: np.ndarray, confidence: float) -> dict[str, Any]:
    if len(correct) == 0:
        return {"questions": 0, "value": None, "interval": None}
    interval = accuracy_interval(correct, confidence)
    return {
        "questions": len(correct),
        "value": float(correct.mean()),
        "interval": [interval.low, interval.high],
    }


def _mean(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None
