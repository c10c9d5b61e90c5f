"""Report of a run: tables on the terminal, and the same tables as Markdown in the run's folder."""

from rich.console import Console

from cgd_ray.evaluation.quality import GeneratedQuality
from cgd_ray.evaluation.scores import Scores
from cgd_ray.redaction import redact
from cgd_ray.report.cells import Cells, interval, markdown, percent, rich_table
from cgd_ray.report.outcome import (
    CurationSummary,
    Figures,
    GenerationSummary,
    Outcome,
    Phase,
    SetSummary,
    TrainingSummary,
)
from cgd_ray.storage.runs import Run

_MANY_QUESTIONS = 100
_REUSED = ["0 (reused)", "", "", "", ""]
_NOT_PAPER = (
    "critique.reference is `teacher`: the critic saw its own direct answer. This is not the paper's setting (`none`); "
    "it is what works with so small a teacher."
)


def write_report(run: Run, outcome: Outcome) -> None:
    """Write `report.md` of the run."""
    parts = [
        f"# Run {run.name}",
        *(markdown(title, rows) for title, rows in _tables(outcome)),
        *_notes(outcome),
    ]
    run.store.write(run.path("report.md"), redact("\n\n".join(parts) + "\n").encode())


def print_report(outcome: Outcome, console: Console) -> None:
    """Print the outcome of a run on a terminal."""
    for title, rows in _tables(outcome):
        console.print(rich_table(title, rows))
    for note in _notes(outcome):
        console.print(note)
    console.print(f"run: {outcome.run}", soft_wrap=True)


def _tables(outcome: Outcome) -> list[tuple[str, Cells]]:
    tables = [("Generation", _generation(outcome.generation)), ("Curation", _curation(outcome.curation.result))]
    if outcome.training:
        tables.append(("Training", _training(outcome.training)))
    if outcome.evaluation:
        evaluation = outcome.evaluation.result
        for name, scores in evaluation.sets.items():
            role = "" if scores.role == "report" else f", {scores.role}"
            tables.append((f"Evaluation on {name} (bare prompt{role})", _evaluation(scores)))
        tables.append(("Quality of the generated rows", _quality(evaluation.generated)))
    return tables


def _generation(phase: Phase[GenerationSummary]) -> Cells:
    stages = phase.result.stages
    rare = [state for state in ("over_long", "quarantined") if any(counts[state] for counts in stages.values())]
    states = ("ok", "truncated", *rare, "failed")
    figures = ("completion_tokens", "completion_tokens_per_second")
    names = [state.replace("_", "-") for state in states]
    head = ["stage", *names, "made now", "prompt tok", "from cache", "completion tok", "tok/s"]
    rows = [head]
    for stage, counts in stages.items():
        spent = phase.cost.spent.get(stage)
        made = [str(spent["rows"]), *_prompt(spent), *(str(spent[figure]) for figure in figures)] if spent else _REUSED
        rows.append([stage, *(str(counts[state]) for state in states), *made])
    return rows


def _prompt(spent: Figures) -> list[str]:
    """Format prompt tokens, and the number of them that came from the prefix cache."""
    tokens, cached = spent["prompt_tokens"], spent["cached_tokens"]
    return [str(tokens), f"{cached} ({percent(cached / tokens)})" if tokens else "-"]


def _curation(curation: CurationSummary) -> Cells:
    dropped = [[f"dropped, {reason}", str(count)] for reason, count in sorted(curation.dropped.items())]
    return [["rows", "number"], ["kept", str(curation.kept)], *dropped]


def _training(phase: Phase[TrainingSummary]) -> Cells:
    student = phase.result.student
    rows = [["training", ""], ["method", phase.result.method], ["rows", str(student.rows)]]
    rows += [["steps", str(student.steps)], ["supervised_tokens", str(student.supervised_tokens)]]
    rows += [["total_tokens", str(student.total_tokens)]]
    rows += [[f"dropped, {reason}", str(count)] for reason, count in sorted(student.dropped.items())]
    if student.validation_loss is not None:
        rows.append(["validation loss", f"{student.validation_loss:.4f} (step {student.exported_step})"])
    if phase.cost.reused:
        return [*rows, ["trained now", "no (reused)"]]
    speed = student.total_tokens / max(student.seconds, 1e-9)
    return [*rows, ["seconds", f"{student.seconds:.0f}"], ["tokens/s", f"{speed:.0f}"]]


def _evaluation(evaluation: SetSummary) -> Cells:
    rows = [["student", "questions", "accuracy", "interval", "in a box", "truncated", "mentions draft"]]
    for name, scores in (("base", evaluation.base), ("trained", evaluation.trained)):
        if scores:
            rows += _scores(name, scores)
    if paired := evaluation.difference:
        flips = f"{paired.fixed} fixed, {paired.broken} broken, p = {paired.p_value:.2g}"
        share, ends = percent(paired.difference, signed=True), interval(paired.interval, signed=True)
        rows.append(["difference", "paired", share, ends, flips, "", ""])
    return rows


def _scores(name: str, scores: Scores) -> Cells:
    rates = [percent(share) for share in (scores.accuracy_boxed, scores.truncated, scores.mentions_inputs)]
    return [
        [
            name if group == "all" else f"  {group}",
            str(accuracy.questions),
            percent(accuracy.value),
            interval(accuracy.interval),
            *(rates if group == "all" else ["", "", ""]),
        ]
        for group, accuracy in scores.accuracy.items()
    ]


def _quality(quality: GeneratedQuality) -> Cells:
    shares = {**quality.accuracy, "verdict": quality.verdicts}
    rows = [["text", "rows", "accuracy"]]
    rows += [[name, str(share.rows), percent(share.accuracy)] for name, share in shares.items()]
    flips = quality.flips
    rows.append(["draft to refinement", str(flips.rows), f"{flips.fixed} fixed, {flips.broken} broken"])
    copied = [[f"copied from {name}", "", percent(rate)] for name, rate in quality.copy_rate.items()]
    return [*rows, *copied]


def _notes(outcome: Outcome) -> list[str]:
    gates = outcome.evaluation.result.gates if outcome.evaluation else []
    return [
        *setting_notes(outcome),
        *(f"{'passed' if gate.passed else 'FAILED'}: {gate.text}" for gate in gates),
        "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in outcome.seconds.items()),
    ]


def setting_notes(outcome: Outcome) -> list[str]:
    """Return notes on settings that affect how to read the figures."""
    notes = [_NOT_PAPER] if outcome.generation.result.critique_reference == "teacher" else []
    sets = outcome.evaluation.result.sets if outcome.evaluation else {}
    small = [f"{one.base.questions} of {name}" for name, one in sets.items() if one.base.questions < _MANY_QUESTIONS]
    if small:
        notes.append(f"Few questions ({', '.join(small)}) show large differences alone: read the intervals.")
    return notes
