"""What a person reads after a run: tables on the terminal, the same as Markdown in the run."""

from rich.console import Console

from cgd_ray.redaction import redact
from cgd_ray.report.cells import Cells, interval, markdown, percent, rich_table
from cgd_ray.storage.runs import Document, Run

_MANY_QUESTIONS = 100
_REUSED = ["0 (reused)", "", "", "", ""]
_NOT_PAPER = (
    "critique.reference is `teacher`: the critic saw its own direct answer. This is not the paper's setting (`none`); "
    "it is what works with so small a teacher."
)


def write_report(run: Run, outcome: Document) -> None:
    """Put `report.md` into the run."""
    parts = [
        f"# Run {run.name}",
        *(markdown(title, rows) for title, rows in _tables(outcome)),
        *_notes(outcome),
    ]
    run.store.write(run.path("report.md"), redact("\n\n".join(parts) + "\n").encode())


def print_report(outcome: Document, console: Console) -> None:
    """Show the outcome of a run on a terminal."""
    for title, rows in _tables(outcome):
        console.print(rich_table(title, rows))
    for note in _notes(outcome):
        console.print(note)
    console.print(f"run: {outcome['run']}", soft_wrap=True)


def _tables(outcome: Document) -> list[tuple[str, Cells]]:
    tables = [("Generation", _generation(outcome)), ("Curation", _curation(outcome))]
    if outcome["training"]:
        tables.append(("Training", _training(outcome["training"])))
    if outcome["evaluation"]:
        tables.append(("Evaluation on held-out prompts (bare prompt)", _evaluation(outcome["evaluation"])))
        if "generated" in outcome["evaluation"]:
            tables.append(("Quality of the generated rows", _quality(outcome["evaluation"]["generated"])))
    return tables


def _generation(outcome: Document) -> Cells:
    stages = outcome["generation"]["stages"]
    rare = [state for state in ("over_long", "quarantined") if any(counts[state] for counts in stages.values())]
    states = ("ok", "truncated", *rare, "failed")
    figures = ("completion_tokens", "completion_tokens_per_second")
    names = [state.replace("_", "-") for state in states]
    head = ["stage", *names, "made now", "prompt tok", "from cache", "completion tok", "tok/s"]
    rows = [head]
    for stage, counts in stages.items():
        spent = outcome["generation"]["spent"].get(stage)
        made = [str(spent["rows"]), *_prompt(spent), *(str(spent[figure]) for figure in figures)] if spent else _REUSED
        rows.append([stage, *(str(counts[state]) for state in states), *made])
    return rows


def _prompt(spent: Document) -> list[str]:
    """Prompt tokens, and how many of them the prefix cache had."""
    tokens, cached = spent["prompt_tokens"], spent["cached_tokens"]
    return [str(tokens), f"{cached} ({percent(cached / tokens)})" if tokens else "-"]


def _curation(outcome: Document) -> Cells:
    dropped = [[f"dropped, {reason}", str(count)] for reason, count in sorted(outcome["curation"]["dropped"].items())]
    return [["rows", "number"], ["kept", str(outcome["curation"]["kept"])], *dropped]


def _training(training: Document) -> Cells:
    rows = [["training", ""], ["method", training["method"]]]
    rows += [[name, str(training[name])] for name in ("rows", "steps", "supervised_tokens", "total_tokens")]
    rows += [[f"dropped, {reason}", str(count)] for reason, count in sorted(training["dropped"].items())]
    if training["validation_loss"] is not None:
        rows.append(["validation loss", f"{training['validation_loss']:.4f} (step {training['exported_step']})"])
    if training["reused"]:
        return [*rows, ["trained now", "no (reused)"]]
    speed = training["total_tokens"] / max(training["seconds"], 1e-9)
    return [*rows, ["seconds", f"{training['seconds']:.0f}"], ["tokens/s", f"{speed:.0f}"]]


def _evaluation(evaluation: Document) -> Cells:
    rows = [["student", "questions", "accuracy", "interval", "in a box", "truncated", "mentions draft"]]
    for name in ("base", "trained"):
        if name not in evaluation:
            continue
        scores = evaluation[name]
        for group, accuracy in scores["accuracy"].items():
            whole = group == "all"
            rates = [percent(scores[key]) for key in ("accuracy_boxed", "truncated", "mentions_inputs")]
            rows.append(
                [
                    name if whole else f"  {group}",
                    str(accuracy["questions"]),
                    percent(accuracy["value"]),
                    interval(accuracy["interval"]),
                    *(rates if whole else ["", "", ""]),
                ]
            )
    if "difference" in evaluation:
        paired = evaluation["difference"]
        flips = f"{paired['fixed']} fixed, {paired['broken']} broken, p = {paired['p_value']:.2g}"
        ends = paired["interval"]
        rows.append(
            [
                "difference",
                "paired",
                percent(paired["difference"], signed=True),
                interval([ends["low"], ends["high"]], signed=True),
                flips,
                "",
                "",
            ]
        )
    return rows


def _quality(quality: Document) -> Cells:
    texts = [name for name in ("draft", "answer", "refine", "verdict") if name in quality]
    rows = [["text", "rows", "accuracy"]]
    rows += [[name, str(quality[name]["rows"]), percent(quality[name]["accuracy"])] for name in texts]
    flips = quality["flips"]
    rows.append(["draft to refinement", str(flips["rows"]), f"{flips['fixed']} fixed, {flips['broken']} broken"])
    copied = [[f"copied from {name}", "", percent(rate)] for name, rate in quality["copy_rate"].items()]
    return [*rows, *copied]


def _notes(outcome: Document) -> list[str]:
    return [
        *setting_notes(outcome),
        "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in outcome["seconds"].items()),
    ]


def setting_notes(outcome: Document) -> list[str]:
    """What a reader must know about the settings before the figures."""
    notes = [_NOT_PAPER] if outcome["generation"]["critique_reference"] == "teacher" else []
    questions = outcome["evaluation"].get("base", {}).get("questions", _MANY_QUESTIONS)
    if questions < _MANY_QUESTIONS:
        notes.append(
            f"With {questions} held-out questions only large differences show: read the intervals, not the figures."
        )
    return notes
