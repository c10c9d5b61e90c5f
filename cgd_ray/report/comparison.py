"""Outcomes of several methods in one table."""

from collections.abc import Mapping

from rich.console import Console

from cgd_ray.evaluation.scores import Scores
from cgd_ray.redaction import redact
from cgd_ray.report.cells import Cells, interval, markdown, percent, rich_table
from cgd_ray.report.outcome import EvaluationSummary, Outcome
from cgd_ray.report.summary import setting_notes
from cgd_ray.storage.runs import Run

Outcomes = Mapping[str, Outcome]
"""By method, each with training and evaluation."""


def write_comparison(run: Run, outcomes: Outcomes) -> None:
    """Put `comparison.md` into the run: outcomes by method."""
    parts = [f"# Methods of {run.name}", markdown(*_comparison(outcomes)), *_comparison_notes(outcomes)]
    run.store.write(run.path("comparison.md"), redact("\n\n".join(parts) + "\n").encode())


def print_comparison(outcomes: Outcomes, console: Console) -> None:
    """Show outcomes by method on a terminal."""
    console.print(rich_table(*_comparison(outcomes)))
    for note in _comparison_notes(outcomes):
        console.print(note)


def _comparison(outcomes: Outcomes) -> tuple[str, Cells]:
    head = ["student", "rows", "steps", "supervised tok", "total tok", "accuracy", "interval"]
    head += ["against base", "interval", "truncated"]
    base = _evaluation(next(iter(outcomes.values()))).base
    rows = [head, ["base", "", "", "", "", *_accuracy_cells(base), "", "", percent(base.truncated)]]
    rows += [[method, *_cells(outcome)] for method, outcome in outcomes.items()]
    return f"Methods on the same rows, {base.questions} held-out questions (bare prompt)", rows


def _cells(outcome: Outcome) -> list[str]:
    if outcome.training is None:
        raise ValueError("a method was not trained")
    student, evaluation = outcome.training.result.student, _evaluation(outcome)
    trained, paired = evaluation.trained, evaluation.difference
    if trained is None or paired is None:
        raise ValueError("a trained student was not evaluated")
    counts = [str(count) for count in (student.rows, student.steps, student.supervised_tokens, student.total_tokens)]
    difference = [percent(paired.difference, signed=True), interval(paired.interval, signed=True)]
    return [*counts, *_accuracy_cells(trained), *difference, percent(trained.truncated)]


def _accuracy_cells(scores: Scores) -> list[str]:
    accuracy = scores.accuracy["all"]
    return [percent(accuracy.value), interval(accuracy.interval)]


def _evaluation(outcome: Outcome) -> EvaluationSummary:
    if outcome.evaluation is None:
        raise ValueError("a method was not evaluated")
    return outcome.evaluation.result


def _comparison_notes(outcomes: Outcomes) -> list[str]:
    outcome = next(iter(outcomes.values()))
    rates = _evaluation(outcome).generated.copy_rate
    copied = ", ".join(f"{name} {percent(rate)}" for name, rate in rates.items())
    return [*setting_notes(outcome), *([f"copied word for word: {copied}"] if copied else [])]
