"""Compute figures from graded answers: accuracy with intervals, and the paired difference."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cgd_ray.config.recipe import Recipe
from cgd_ray.evaluation.questions import QuestionSet
from cgd_ray.evaluation.statistics import (
    Interval,
    PairedDifference,
    Verdicts,
    accuracy_interval,
    paired_difference,
    pass_at_k,
)
from cgd_ray.grading.grade import grade
from cgd_ray.grading.mentions import mentions_inputs
from cgd_ray.prompts.conversation import history_of, transcript
from cgd_ray.stages.stage import Row

_ROWS = 1024


@dataclass(frozen=True)
class Graded:
    """One student's answers to the same questions, in one order. All arrays have shape (samples, questions)."""

    correct: np.ndarray  # right and not truncated
    boxed: np.ndarray  # ... and given in a box
    truncated: np.ndarray
    mentions: np.ndarray  # mentions a critique or draft that no user wrote
    tokens: np.ndarray


@dataclass(frozen=True)
class Accuracy:
    """Share of questions answered correctly."""

    questions: int
    value: float | None
    """In [0, 1]; None without questions."""
    interval: Interval | None


@dataclass(frozen=True)
class Scores:
    """Scores of one student's answers."""

    questions: int
    accuracy: dict[str, Accuracy]
    """Accuracy on `all` questions, and on each group in the data."""
    pass_at: dict[int, float]
    """By k: probability that one of k answers is correct, for k of 2, 4, ... up to the number of samples."""
    accuracy_boxed: float
    """Share that is correct and given in a box."""
    truncated: float
    """Share cut off by the length limit."""
    mentions_inputs: float
    """Share that mentions a critique or draft that no user wrote."""
    mean_tokens: float


def grade_results(results: pa.Table, asked: QuestionSet) -> Graded:
    """Grade results (RESULTS schema) against the questions' references. A truncated or missing answer is wrong."""
    samples = [_graded(results.filter(pc.equal(results["sample"], one)), asked.rows) for one in range(asked.samples)]
    return Graded(**{name: np.stack([sample[name] for sample in samples]) for name in samples[0]})


def _graded(results: pa.Table, rows: pa.Table) -> dict[str, np.ndarray]:
    columns: dict[str, list[int]] = defaultdict(list)
    for row in _answered(results, rows):
        ok = row["status"] == "ok"
        mark = grade(row["text"], row["reference"]) if ok else None
        columns["correct"].append(mark is not None and mark.correct)
        columns["boxed"].append(mark is not None and mark.correct and mark.boxed)
        columns["truncated"].append(row["status"] == "truncated")
        asked = transcript(row["prompt"], history_of(row["history"]))
        columns["mentions"].append(mentions_inputs(row["text"] or "", asked))
        columns["tokens"].append(row["completion_tokens"] or 0)
    return {name: np.array(values) for name, values in columns.items()}


def _answered(results: pa.Table, rows: pa.Table) -> Iterator[Row]:
    """Yield rows with `status`, `text` and `completion_tokens` of their results, few at a time: there may be many."""
    places = pc.index_in(rows["prompt_id"], results["prompt_id"].combine_chunks())
    joined = rows.select(["prompt", "history", "reference"])
    for name in ("status", "text", "completion_tokens"):
        joined = joined.append_column(name, results[name].take(places))
    for batch in joined.to_batches(max_chunksize=_ROWS):
        yield from batch.to_pylist()


def score(graded: Graded, rows: pa.Table, confidence: float) -> Scores:
    """Compute accuracy over all questions and by group (seen and novel kinds), and the other scores."""
    groups = {"all": np.ones(len(rows), bool)}
    novel = np.array(rows["novel"].to_pylist(), bool)
    if novel.any():
        groups |= {"seen kinds": ~novel, "novel kinds": novel}
    return Scores(
        questions=len(rows),
        accuracy={name: _accuracy(graded.correct[:, mask], confidence) for name, mask in groups.items()},
        pass_at=_pass_at(graded.correct),
        accuracy_boxed=float(graded.boxed.mean()),
        truncated=float(graded.truncated.mean()),
        mentions_inputs=float(graded.mentions.mean()),
        mean_tokens=float(graded.tokens.mean()),
    )


def _pass_at(correct: Verdicts) -> dict[int, float]:
    samples, right = len(correct), correct.sum(axis=0)
    sizes = [2**power for power in range(1, samples.bit_length()) if 2**power <= samples]
    return {k: float(np.mean([pass_at_k(samples, int(count), k) for count in right])) for k in sizes}


def compare(base: Graded, trained: Graded, recipe: Recipe) -> PairedDifference:
    """Return the paired difference of trained minus base over the same questions, with its interval."""
    section = recipe.evaluation
    return paired_difference(base.correct, trained.correct, section.confidence, section.resamples, seed=recipe.run.seed)


def _accuracy(correct: Verdicts, confidence: float) -> Accuracy:
    questions = correct.shape[1]
    if questions == 0:
        return Accuracy(0, None, None)
    return Accuracy(questions, float(correct.mean()), accuracy_interval(correct, confidence))
