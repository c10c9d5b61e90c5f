"""The analysis of a run, for a terminal and as Markdown."""

from collections.abc import Mapping

from rich.console import Console

from cgd_ray.analysis.contexts import CONTEXTS
from cgd_ray.analysis.measures import DIFFERENCES, Estimate, Measures
from cgd_ray.report.cells import Cells, markdown, rich_table
from cgd_ray.storage.runs import Run

_NOTE = (
    "Nats per token of the same refinement; a positive difference means that the second context makes it more likely. "
    "The critique's difference is the pointwise mutual information of critique and refinement under the model: generic "
    "part (any critique with this verdict) plus input-specific part (this critique, not another prompt's). Read as "
    "Bayes' rule, p(refinement | prompt, draft, critique) is proportional to p(critique | prompt, draft, refinement) "
    "p(refinement | prompt, draft), if the model's conditionals are those of one joint distribution."
)


def write_analysis(run: Run, measures: Mapping[str, Measures]) -> None:
    """Write `analysis.md` of the run."""
    parts = [f"# Analysis of {run.name}", *(markdown(title, rows) for title, rows in _tables(measures)), _NOTE]
    run.store.write(run.path("analysis.md"), ("\n\n".join(parts) + "\n").encode())


def print_analysis(measures: Mapping[str, Measures], console: Console) -> None:
    """Print the analysis."""
    for title, rows in _tables(measures):
        console.print(rich_table(title, rows))
    console.print(_NOTE)


def _tables(measures: Mapping[str, Measures]) -> list[tuple[str, Cells]]:
    students = list(measures)
    first = measures[students[0]]
    of = f"of {first.rows} refinements to {first.prompts} prompts, nats per token"
    contexts: Cells = [["context", *(f"{kind}, {name}" for name in students for kind in ("surprise", "entropy"))]]
    for context in CONTEXTS:
        cells = [_cell(found[context]) for name in students for found in (measures[name].nll, measures[name].entropy)]
        contexts.append([context, *cells])
    differences: Cells = [["what is added", "contexts", *students]]
    for difference, pair in DIFFERENCES.items():
        cells = [_cell(measures[name].differences[difference], signed=True) for name in students]
        differences.append([difference, " - ".join(pair), *cells])
    return [(f"Uncertainty {of}", contexts), (f"What reduces the surprise {of}", differences)]


def _cell(estimate: Estimate, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    low, high = (f"{end:{sign}.3f}" for end in (estimate.interval.low, estimate.interval.high))
    return f"{estimate.value:{sign}.3f} ({low} to {high})"
