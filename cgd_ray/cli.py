"""The `cgd` command, and what the entry points in `jobs/` call."""

import functools
import json
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console

from cgd_ray.config.recipe import Recipe, load_recipe
from cgd_ray.errors import RERUN, CgdError, StoppedError
from cgd_ray.redaction import redact
from cgd_ray.runtime.logs import configure_logging, redact_uncaught

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)

P = ParamSpec("P")
RecipePath = Annotated[Path, typer.Argument(help="YAML recipe; jobs/recipes/ has examples.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, any number of them.")]

COMPARED = ("cgd", "refsft", "mix", "distill")
_INTERRUPTED = 130


def _command(function: Callable[P, None]) -> Callable[P, None]:
    """Register a function as a command; its errors become one line on standard error and an exit code."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(_exit_code(functools.partial(function, *args, **kwargs)))

    app.command()(guarded)
    return function


@_command
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    explain: Annotated[
        bool, typer.Option("--explain", help="Only say which stages would be made anew, and by which setting.")
    ] = False,
) -> None:
    """Run all phases: generate, curate, train, evaluate, report. Run it again and it continues."""
    if explain:
        _explain(load_recipe(recipe, overrides))
    else:
        _run(load_recipe(recipe, overrides), None)


@_command
def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A training method, several times; else those of the recipe."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Students per method, each trained with its own seed.")] = 1,
) -> None:
    """Train and evaluate students of several methods on the same generated rows, and show them side by side."""
    loaded = load_recipe(recipe, overrides)
    from cgd_ray.pipeline.compare import compare_methods

    compare_methods(loaded, method or loaded.training.compared_with or COMPARED, seeds, _console(140))


@_command
def validate(
    recipe: Annotated[Path | None, typer.Argument()] = None,
    overrides: Overrides = None,
    *,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of all keys instead.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Check the keys only: no files, models, endpoints.")
    ] = False,
) -> None:
    """Check a recipe, and that what it points to is there, without starting anything."""
    if schema:
        typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))
        return
    if recipe is None:
        raise typer.BadParameter("give a recipe, or --schema")
    loaded = load_recipe(recipe, overrides)
    if not offline:
        from cgd_ray.pipeline.preflight import preflight

        preflight(loaded)
    typer.echo(f"{recipe}: valid")


@_command
def status(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Rows done, failed and pending per stage, and whether the run is complete."""
    loaded = load_recipe(recipe, overrides)
    from cgd_ray.pipeline.connect import existing_run
    from cgd_ray.report.status import print_status

    with existing_run(loaded) as found:
        print_status(found, _console(120))


@_command
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    rows: Annotated[int, typer.Option("--probe", min=1, help="Rows to generate; they are kept.")] = 64,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0, help="What a GPU costs for an hour.")] = None,
) -> None:
    """Generate a few of a run's rows; say what the others take (tokens, hours, money), and training (steps, memory)."""
    loaded = load_recipe(recipe, overrides)
    from cgd_ray.estimation.evaluation import forecast_evaluation
    from cgd_ray.estimation.generation import probe
    from cgd_ray.estimation.report import print_estimate, print_evaluation, print_power, print_training
    from cgd_ray.estimation.training import forecast_training
    from cgd_ray.evaluation.questions import question_sets
    from cgd_ray.pipeline.connect import connected_run
    from cgd_ray.pipeline.preflight import require_histories

    console = _console(160)
    with connected_run(loaded) as found:
        require_histories(found)
        sets = question_sets(found) if loaded.evaluation.enabled else []
        estimate = probe(found, rows, gpu_hour_price)
    if estimate is None:
        console.print("nothing is left to generate")
    else:
        print_estimate(estimate, console)
    if loaded.training.enabled:
        print_training(forecast_training(found), found.recipe.training, console)
    if sets:
        print_evaluation(forecast_evaluation(found, sets, estimate), console)
    for one in sets:
        print_power(one.name, len(one.rows), loaded.evaluation.confidence, console)


@_command
def inspect(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 3,
    row: Annotated[
        str | None, typer.Option(help="This row alone: its prompt id, the beginning of it, or FILE:ROW of the source.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only rows that failed in a stage, with the error.")] = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="Only rows that curation dropped.")] = False,
    skipped: Annotated[bool, typer.Option("--skipped", help="Only rows of the source that cannot be used.")] = False,
) -> None:
    """Show generated rows: prompt, draft, critique, verdict, refinement, and why a row was dropped."""
    loaded = load_recipe(recipe, overrides)
    from cgd_ray.pipeline.connect import existing_run
    from cgd_ray.pipeline.preflight import existing_store
    from cgd_ray.report.status import Wanted, print_rows, print_skipped

    if skipped:
        print_skipped(loaded, existing_store(loaded), _console(120), rows)
        return
    with existing_run(loaded) as found:
        print_rows(found, _console(120), rows, Wanted(dropped, failed, row))


@_command
def analyze(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Measure how far critiques reduce the uncertainty of refinements, before and after training."""
    loaded = load_recipe(recipe, overrides)
    from cgd_ray.pipeline.analyze import analyze_run
    from cgd_ray.pipeline.connect import connected_run
    from cgd_ray.report.analysis import print_analysis

    with connected_run(loaded) as found:
        print_analysis(analyze_run(found), _console(120))


@_command
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Demo models; none lists them.")] = None,
) -> None:
    """List the demo models, or fetch and convert the named ones."""
    from cgd_ray.models.demo import MODELS, fetch

    if not names:
        for name in MODELS:
            typer.echo(f"demo:{name}")
    for name in names or []:
        typer.echo(fetch(name.removeprefix("demo:")))


@_command
def serve(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    no_key: Annotated[bool, typer.Option("--no-key", help="Ask without a key, from this machine alone.")] = False,
) -> None:
    """Serve the run's trained student behind an OpenAI-compatible endpoint until Ctrl-C."""
    loaded = load_recipe(recipe, [*(overrides or []), *(["serving.no_key=true"] if no_key else [])])
    from cgd_ray.pipeline.preflight import open_store
    from cgd_ray.runtime.session import ray_session
    from cgd_ray.serving.run import serve_until_interrupted
    from cgd_ray.stages.resolved import pin_student_type

    store = open_store(loaded)
    with ray_session():
        serve_until_interrupted(pin_student_type(loaded, store), store, _console(120))


def main() -> None:
    """Run the console script."""
    app()


def job_main(phases: Collection[str] | None = None) -> None:
    """Run `python jobs/NAME.py RECIPE [section.key=value ...]`: these phases of a recipe, or all, with the report."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.stderr.write(f"usage: python {sys.argv[0]} RECIPE [section.key=value ...]\n")
        sys.exit(2)
    sys.exit(run_phases(Path(sys.argv[1]), sys.argv[2:], phases))


def run_phases(recipe: Path, overrides: list[str], phases: Collection[str] | None = None) -> int:
    """Run phases of a recipe, or all; returns the exit code."""
    return _exit_code(lambda: _run(load_recipe(recipe, overrides), phases))


def _exit_code(command: Callable[[], None]) -> int:
    configure_logging()
    redact_uncaught()
    # Else a thread that calls Ray after the end would start another cluster; Ray reads it at import.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        command()
    except CgdError as error:
        return _end(f"{'stopped' if isinstance(error, StoppedError) else 'error'}: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _end(f"stopped: interrupted; {RERUN}", _INTERRUPTED)
    except _store_errors() as error:
        text = " ".join(str(error).split())  # the text names the file
        return _end(f"error: {type(error).__name__}: {text}. Fix: look at the disk or at S3; {RERUN}", 1)
    return 0


def _end(text: str, code: int) -> int:
    sys.stderr.write(f"{redact(text)}\n")
    return code


def _store_errors() -> tuple[type[Exception], ...]:
    from cgd_ray.storage.filesystem import store_errors  # imported only after an exception

    return store_errors()


def _console(width: int) -> Console:
    """Return a console with the terminal's width, or with this width if the output is no terminal."""
    return Console(width=None if sys.stdout.isatty() else width)


def _run(recipe: Recipe, phases: Collection[str] | None) -> None:
    from cgd_ray.pipeline.connect import connected_run
    from cgd_ray.pipeline.run import PHASES, run_pipeline
    from cgd_ray.report.summary import print_report

    console = _console(120)
    chosen = {phase for phase in PHASES if phases is None or phase in phases}
    with connected_run(recipe) as found:
        outcome = run_pipeline(found, chosen)
        print_report(outcome, console)
        if recipe.serving.trial and phases is None and outcome.training and outcome.evaluation:
            from cgd_ray.serving.run import ask_served_student  # Ray Serve takes seconds, which most commands save

            ask_served_student(found, outcome.training.result.student.student_name, console)


def _explain(recipe: Recipe) -> None:
    from cgd_ray.generation.explain import explain
    from cgd_ray.pipeline.preflight import existing_store
    from cgd_ray.stages.resolved import resolve

    store = existing_store(recipe)
    for line in explain(store, recipe, resolve(recipe, store).stages.all):
        typer.echo(line)
