"""From graded answers to figures: accuracy with intervals, the paired difference, and the quality of generated rows."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cgd_ray.config.recipe import Recipe
from cgd_ray.engines.join import JoinedRow
from cgd_ray.evaluation.statistics import accuracy_interval, paired_difference
from cgd_ray.grading.answers import gold_of
from cgd_ray.grading.grade import grade
from cgd_ray.grading.mentions import mentions_inputs
from cgd_ray.grading.overlap import copy_rate
from cgd_ray.storage.runs import Document


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


def accuracy_table(graded: Graded, rows: pa.Table, confidence: float) -> Document:
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


def compare(base: Graded, trained: Graded, recipe: Recipe) -> Document:
    """The paired difference of trained minus base over the same questions, with its interval."""
    section = recipe.evaluation
    difference = paired_difference(
        base.correct, trained.correct, section.confidence, section.resamples, seed=recipe.run.seed
    )
    return asdict(difference)


def generated_quality(rows: Iterable[JoinedRow]) -> Document:
    """Accuracy of drafts, answers and refinements, flips between draft and refinement, and of the critic's verdicts.

    Only rows with a reference that states an answer, whose stage succeeded, are counted; `rows` says how many.
    """
    marked = [(row, _marks(row)) for row in rows if row.texts["reference"] and gold_of(row.texts["reference"])]
    quality: Document = {
        name: _share([marks[name] for _, marks in marked if name in marks])
        for name in ("draft", "answer", "refine")
        if any(name in row.results for row, _ in marked)
    }
    both = [(marks["draft"], marks["refine"]) for _, marks in marked if "refine" in marks]
    quality["flips"] = {
        "rows": len(both),
        "fixed": sum(not before and after for before, after in both),
        "broken": sum(before and not after for before, after in both),
    }
    verdicts = [(row.results["critique"] or {}).get("verdict") for row, _ in marked]
    judged = zip(verdicts, (marks for _, marks in marked), strict=True)
    quality["verdict"] = _share([(verdict == "right") == marks["draft"] for verdict, marks in judged if verdict])
    quality["copy_rate"] = {
        f"{source} to refinement": _copied(source, [row for row, _ in marked])
        for source in ("critique", "answer")
        if any(source in row.results for row, _ in marked)
    }
    return quality


def _marks(row: JoinedRow) -> dict[str, bool]:
    texts = {name: row.texts[name] for name in ("draft", "answer", "refine") if row.texts[name] is not None}
    return {name: grade(text, row.texts["reference"]).correct for name, text in texts.items()}


def _copied(source: str, rows: list[JoinedRow]) -> float | None:
    """Mean share of the refinements' n-grams that stand in the source text of the same row."""
    pairs = [(row.texts[source], row.texts["refine"]) for row in rows]
    rates = [copy_rate(text, refined) for text, refined in pairs if text is not None and refined is not None]
    return float(np.mean(rates)) if rates else None


def _share(right: list[bool]) -> Document:
    return {"rows": len(right), "accuracy": sum(right) / len(right) if right else None}


def _accuracy(correct: np.ndarray, confidence: float) -> Document:
    if len(correct) == 0:
        return {"questions": 0, "value": None, "interval": None}
    interval = accuracy_interval(correct, confidence)
    return {
        "questions": len(correct),
        "value": float(correct.mean()),
        "interval": [interval.low, interval.high],
    }
