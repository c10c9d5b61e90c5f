"""Report outcomes of several methods and the differences between them."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console

from cgd_ray.evaluation.scores import Scores
from cgd_ray.evaluation.statistics import PairOfStudents
from cgd_ray.redaction import redact
from cgd_ray.report.cells import Cells, interval, markdown, percent, rich_table
from cgd_ray.report.outcome import EvaluationSummary, Outcome
from cgd_ray.report.summary import setting_notes
from cgd_ray.storage.runs import Run

Outcomes = Mapping[str, Outcome]
"""Outcomes by student, each with training and evaluation."""

_ONE_SEED = "One training seed per method: how much another seed changes it is not known (`cgd compare --seeds 3`)."


@dataclass(frozen=True)
class Comparison:
    """Results of methods on the same rows and questions."""

    students: Outcomes
    """Outcomes by student: METHOD, and METHOD-seedK for further training seeds."""
    pairs: dict[str, list[PairOfStudents]]
    """By set of questions: every pair among base and methods, each method as the mean over its seeds."""


def write_comparison(run: Run, comparison: Comparison) -> None:
    """Write `comparison.md` of the run: outcomes by student, and differences between all methods."""
    tables = [markdown(title, rows) for title, rows in _tables(comparison)]
    parts = [f"# Methods of {run.name}", *tables, *_comparison_notes(comparison)]
    run.store.write(run.path("comparison.md"), redact("\n\n".join(parts) + "\n").encode())


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Show outcomes by student, and differences between all methods, on a terminal."""
    for title, rows in _tables(comparison):
        console.print(rich_table(title, rows))
    for note in _comparison_notes(comparison):
        console.print(note)


def _tables(comparison: Comparison) -> list[tuple[str, Cells]]:
    tables = [("Students trained on the same rows", _trainings(comparison.students))]
    for name, pairs in comparison.pairs.items():
        tables.append(_accuracies(comparison.students, name))
        tables.append((f"Paired differences on {name}", _pairs(pairs)))
    return tables


def _trainings(outcomes: Outcomes) -> Cells:
    rows = [["student", "rows", "steps", "supervised tok", "total tok"]]
    for name, outcome in outcomes.items():
        if outcome.training is None:
            raise ValueError("a method was not trained")
        student = outcome.training.result.student
        counts = (student.rows, student.steps, student.supervised_tokens, student.total_tokens)
        rows.append([name, *map(str, counts)])
    return rows


def _pairs(pairs: list[PairOfStudents]) -> Cells:
    rows = [["method", "minus", "difference", "over questions", "over seeds", "fixed", "broken", "p", "p (Holm)"]]
    for pair in pairs:
        paired = pair.difference
        intervals = [interval(ends, signed=True) for ends in (paired.interval, pair.seeds)]
        tests = [f"{p_value:.2g}" for p_value in (paired.p_value, pair.adjusted_p_value)]
        flips = [str(paired.fixed), str(paired.broken)]
        rows.append([pair.first, pair.second, percent(paired.difference, signed=True), *intervals, *flips, *tests])
    return rows


def _accuracies(outcomes: Outcomes, name: str) -> tuple[str, Cells]:
    """Return the title and table of all students on one set of questions."""
    found = {student: _evaluation(outcome).sets[name] for student, outcome in outcomes.items()}
    base = next(iter(found.values())).base
    rows = [["student", "accuracy", "interval", "against base", "interval", "truncated", "tokens"]]
    rows.append(["base", *_accuracy_cells(base), "", "", *_length_cells(base)])
    for student, scores in found.items():
        trained, paired = scores.trained, scores.difference
        if trained is None or paired is None:
            raise ValueError("a trained student was not evaluated")
        difference = [percent(paired.difference, signed=True), interval(paired.interval, signed=True)]
        rows.append([student, *_accuracy_cells(trained), *difference, *_length_cells(trained)])
    return f"{base.questions} questions of {name} (bare prompt)", rows


def _length_cells(scores: Scores) -> list[str]:
    return [percent(scores.truncated), f"{scores.mean_tokens:.0f}"]


def _accuracy_cells(scores: Scores) -> list[str]:
    accuracy = scores.accuracy["all"]
    return [percent(accuracy.value), interval(accuracy.interval)]


def _evaluation(outcome: Outcome) -> EvaluationSummary:
    if outcome.evaluation is None:
        raise ValueError("a method was not evaluated")
    return outcome.evaluation.result


def _comparison_notes(comparison: Comparison) -> list[str]:
    outcome = next(iter(comparison.students.values()))
    rates = _evaluation(outcome).generated.copy_rate
    copied = ", ".join(f"{name} {percent(rate)}" for name, rate in rates.items())
    notes = [*setting_notes(outcome), *([f"copied word for word: {copied}"] if copied else [])]
    has_seeds = any(pair.seeds for pairs in comparison.pairs.values() for pair in pairs)
    return notes if has_seeds else [*notes, _ONE_SEED]
