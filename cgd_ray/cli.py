"""The `cgd` command, and what the entry points in `jobs/` call."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cgd_ray.config.recipe import Recipe, load_recipe
from cgd_ray.errors import CgdError, StoppedError
from cgd_ray.redaction import redact
from cgd_ray.runtime.logs import configure_logging

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)

RecipePath = Annotated[Path, typer.Argument(help="YAML recipe; jobs/recipes/ has examples.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, any number of them.")]

COMPARED = ("cgd", "refsft", "mix", "distill")
_INTERRUPTED = 130


@app.command()
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
        raise typer.Exit(_guarded(lambda: _explain(recipe, overrides or [])))
    raise typer.Exit(run_phases(recipe, overrides or []))


@app.command()
def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A training method, several times; else those of the recipe."),
    ] = None,
) -> None:
    """Train and evaluate one student per method on the same generated rows, and show them side by side."""
    raise typer.Exit(_guarded(lambda: _compare(recipe, overrides or [], method or [])))


@app.command()
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
    raise typer.Exit(_guarded(lambda: _validate(recipe, overrides or [], offline=offline)))


@app.command()
def status(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Rows done, failed and pending per stage, and whether the run is complete."""
    raise typer.Exit(_guarded(lambda: _status(recipe, overrides or [])))


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    rows: Annotated[int, typer.Option("--probe", min=1, help="Rows to generate; they are kept.")] = 64,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0, help="What a GPU costs for an hour.")] = None,
) -> None:
    """Generate a few of a run's rows; say what the others take (tokens, hours, money), and training (steps, memory)."""
    raise typer.Exit(_guarded(lambda: _plan(recipe, overrides or [], rows, gpu_hour_price)))


@app.command()
def inspect(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 3,
    dropped: Annotated[bool, typer.Option("--dropped", help="Only rows that curation dropped.")] = False,
    skipped: Annotated[bool, typer.Option("--skipped", help="Only rows of the source that cannot be used.")] = False,
) -> None:
    """Show generated rows: prompt, draft, critique, verdict, refinement, and why a row was dropped."""
    raise typer.Exit(_guarded(lambda: _inspect(recipe, overrides or [], rows, dropped=dropped, skipped=skipped)))


@app.command()
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Demo models; none lists them.")] = None,
) -> None:
    """List the demo models, or fetch and convert the named ones."""
    raise typer.Exit(_guarded(lambda: _models(names or [])))


@app.command()
def serve(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    no_key: Annotated[bool, typer.Option("--no-key", help="Ask without a key, from this machine alone.")] = False,
) -> None:
    """Serve the run's trained student behind an OpenAI-compatible endpoint until Ctrl-C."""
    given = [*(overrides or []), *(["serving.no_key=true"] if no_key else [])]
    raise typer.Exit(_guarded(lambda: _serve(recipe, given)))


def main() -> None:
    """The console script."""
    app()


def run_phases(path: Path, overrides: list[str], phases: Collection[str] | None = None) -> int:
    """Run phases of a recipe from start to report; returns the exit code. What `jobs/*.py` call."""
    return _guarded(lambda: _run(path, overrides, phases))


def job_main(phases: Collection[str] | None = None) -> None:
    """`python jobs/NAME.py RECIPE [section.key=value ...]`."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.stderr.write(f"usage: python {sys.argv[0]} RECIPE [section.key=value ...]\n")
        sys.exit(2)
    sys.exit(run_phases(Path(sys.argv[1]), sys.argv[2:], phases))


def _guarded(command: Callable[[], None]) -> int:
    """Run a command; its errors become one line on standard error and an exit code."""
    configure_logging()
    # Else a thread that asks Ray for something after the end starts another cluster; read when ray is imported.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        command()
    except CgdError as error:
        return _end(f"{'stopped' if isinstance(error, StoppedError) else 'error'}: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _end("stopped: interrupted; the same command continues", _INTERRUPTED)
    except _store_errors() as error:
        text = " ".join(str(error).split())  # which names the file
        return _end(f"error: {type(error).__name__}: {text}; look at the disk or at S3: the same command continues", 1)
    return 0


def _end(text: str, code: int) -> int:
    sys.stderr.write(f"{redact(text)}\n")
    return code


def _console(width: int) -> Console:
    """A terminal's own width, or one that a table fits into where the output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else width)


@contextlib.contextmanager
def _readers(*, on_s3: bool) -> Iterator[None]:
    """Tables on S3 are read by all nodes of the cluster that `RAY_ADDRESS` names; none is started for that."""
    from cgd_ray.runtime.session import ray_session

    address = os.environ.get("RAY_ADDRESS", "")
    with contextlib.ExitStack() as stack:
        if on_s3 and address and "://" not in address:  # else it is where jobs are submitted
            try:
                stack.enter_context(ray_session())
            except CgdError as error:
                typer.echo(f"this machine alone reads: {error}", err=True)
        yield


def _store_errors() -> tuple[type[Exception], ...]:
    from cgd_ray.storage.filesystem import store_errors  # only asked for when something was raised

    return store_errors()


def _run(path: Path, overrides: list[str], phases: Collection[str] | None) -> None:
    recipe = load_recipe(path, overrides)
    from cgd_ray.pipeline.node_check import check_nodes
    from cgd_ray.pipeline.preflight import preflight
    from cgd_ray.pipeline.run import PHASES, run_pipeline
    from cgd_ray.report.summary import print_report
    from cgd_ray.runtime.session import ray_session
    from cgd_ray.stages.definitions import pin_models

    store = preflight(recipe)
    console = _console(120)
    chosen = {phase for phase in PHASES if phases is None or phase in phases}
    with ray_session():
        check_nodes(store)
        recipe = pin_models(recipe, store)
        outcome = asdict(run_pipeline(recipe, store, chosen))
        print_report(outcome, console)
        if recipe.serving.trial and phases is None and outcome["training"] and outcome["evaluation"]:
            from cgd_ray.serving.run import ask_served_student  # Ray Serve: seconds that most commands do not need

            ask_served_student(recipe, store, outcome["training"]["student_name"], console)


def _compare(path: Path, overrides: list[str], names: list[str]) -> None:
    methods = names or load_recipe(path, overrides).training.compared_with or COMPARED
    matched = [*overrides, f"training.compared_with=[{', '.join(methods)}]"]
    recipes = {name: load_recipe(path, [*matched, f"training.method={name}"]) for name in methods}
    from cgd_ray.pipeline.compare import compare_methods, run_of
    from cgd_ray.pipeline.node_check import check_nodes
    from cgd_ray.pipeline.preflight import preflight
    from cgd_ray.runtime.session import ray_session
    from cgd_ray.stages.definitions import pin_models

    first = next(iter(recipes.values()))
    store = preflight(first)
    # Where one method ran on another CPU, the next must not compute with another type.
    runs = [run_of(method, first.run.name) for method in recipes]
    with ray_session():
        check_nodes(store)
        pinned = {name: pin_models(recipe, store, runs=runs) for name, recipe in recipes.items()}
        compare_methods(pinned, store, _console(140))


def _validate(path: Path, overrides: list[str], *, offline: bool) -> None:
    recipe = load_recipe(path, overrides)
    if not offline:
        from cgd_ray.pipeline.preflight import preflight

        preflight(recipe)
    typer.echo(f"{path}: valid")


def _status(path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(path, overrides)
    from cgd_ray.pipeline.preflight import existing_store
    from cgd_ray.report.status import print_status
    from cgd_ray.stages.definitions import pin_models

    store = existing_store(recipe)
    with _readers(on_s3=store.is_s3):
        print_status(pin_models(recipe, store), store, _console(120))


def _plan(path: Path, overrides: list[str], rows: int, gpu_hour_price: float | None) -> None:
    recipe = load_recipe(path, overrides)
    from cgd_ray.data.prepare import prepare_prompts
    from cgd_ray.estimation.generation import probe
    from cgd_ray.estimation.report import print_estimate, print_evaluation, print_training
    from cgd_ray.estimation.training import forecast_evaluation, forecast_training
    from cgd_ray.evaluation.run import heldout_rows
    from cgd_ray.pipeline.node_check import check_nodes
    from cgd_ray.pipeline.preflight import preflight, require_histories
    from cgd_ray.runtime.session import ray_session
    from cgd_ray.stages.definitions import pin_models

    store = preflight(recipe)
    console = _console(160)
    with ray_session():
        check_nodes(store)
        recipe = pin_models(recipe, store)
        prompts = prepare_prompts(recipe, store)
        require_histories(recipe, prompts)
        questions = heldout_rows(recipe, prompts.table) if recipe.evaluation.enabled else None
        estimate = probe(recipe, prompts.table, rows, gpu_hour_price)
    if estimate is None:
        console.print("nothing is left to generate")
    else:
        print_estimate(estimate, console)
    if recipe.training.enabled:
        print_training(forecast_training(recipe, store, prompts), recipe.training, console)
    if questions is not None:
        print_evaluation(forecast_evaluation(recipe, store, prompts, questions, estimate), console)


def _explain(path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(path, overrides)
    from cgd_ray.generation.explain import explain
    from cgd_ray.pipeline.preflight import existing_store
    from cgd_ray.stages.definitions import build_stages, pin_models

    store = existing_store(recipe)
    for line in explain(store, recipe, build_stages(pin_models(recipe, store), store).all):
        typer.echo(line)


def _inspect(path: Path, overrides: list[str], rows: int, *, dropped: bool, skipped: bool) -> None:
    recipe = load_recipe(path, overrides)
    from cgd_ray.pipeline.preflight import existing_store
    from cgd_ray.report.status import print_rows, print_skipped
    from cgd_ray.stages.definitions import pin_models

    store = existing_store(recipe)
    if skipped:
        print_skipped(recipe, store, _console(120), rows)
        return
    with _readers(on_s3=store.is_s3):
        print_rows(pin_models(recipe, store), store, _console(120), rows, dropped=dropped)


def _models(names: list[str]) -> None:
    from cgd_ray.models.demo import MODELS, fetch

    if not names:
        for name in MODELS:
            typer.echo(f"demo:{name}")
    for name in names:
        typer.echo(fetch(name.removeprefix("demo:")))


def _serve(path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(path, overrides)
    from cgd_ray.pipeline.preflight import open_store
    from cgd_ray.runtime.session import ray_session
    from cgd_ray.serving.run import serve_until_interrupted
    from cgd_ray.stages.definitions import pin_student_type

    store = open_store(recipe)
    with ray_session():
        serve_until_interrupted(pin_student_type(recipe, store), store, _console(120))
