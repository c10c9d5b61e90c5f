"""Outcomes of several methods in one table."""

from rich.console import Console

from cgd_ray.redaction import redact
from cgd_ray.report.cells import Cells, interval, markdown, percent, rich_table
from cgd_ray.report.summary import setting_notes
from cgd_ray.storage.runs import Document, Run


def write_comparison(run: Run, outcomes: Document) -> None:
    """Put `comparison.md` into the run: outcomes by method."""
    parts = [f"# Methods of {run.name}", markdown(*_comparison(outcomes)), *_comparison_notes(outcomes)]
    run.store.write(run.path("comparison.md"), redact("\n\n".join(parts) + "\n").encode())


def print_comparison(outcomes: Document, console: Console) -> None:
    """Show outcomes by method on a terminal."""
    console.print(rich_table(*_comparison(outcomes)))
    for note in _comparison_notes(outcomes):
        console.print(note)


def _comparison(outcomes: Document) -> tuple[str, Cells]:
    head = ["student", "rows", "steps", "supervised tok", "total tok", "accuracy", "interval"]
    head += ["against base", "interval", "truncated"]
    base = next(iter(outcomes.values()))["evaluation"]["base"]
    rows = [head, ["base", "", "", "", "", *_accuracy_cells(base), "", "", percent(base["truncated"])]]
    for method, outcome in outcomes.items():
        training, trained = outcome["training"], outcome["evaluation"]["trained"]
        paired = outcome["evaluation"]["difference"]
        difference = [
            percent(paired["difference"], signed=True),
            interval([paired["interval"]["low"], paired["interval"]["high"]], signed=True),
        ]
        counts = [str(training[name]) for name in ("rows", "steps", "supervised_tokens", "total_tokens")]
        rows.append([method, *counts, *_accuracy_cells(trained), *difference, percent(trained["truncated"])])
    return f"Methods on the same rows, {base['questions']} held-out questions (bare prompt)", rows


def _accuracy_cells(scores: Document) -> list[str]:
    accuracy = scores["accuracy"]["all"]
    return [percent(accuracy["value"]), interval(accuracy["interval"])]


def _comparison_notes(outcomes: Document) -> list[str]:
    outcome = next(iter(outcomes.values()))
    rates = outcome["evaluation"].get("generated", {}).get("copy_rate", {})
    copied = ", ".join(f"{name} {percent(rate)}" for name, rate in rates.items())
    return [*setting_notes(outcome), *([f"copied word for word: {copied}"] if copied else [])]
