"""Python API of the commands, for notebooks and scripts.

    import cgd_ray

    recipe = cgd_ray.load_recipe("jobs/recipes/demo.yaml", ["data.limit=8"])
    outcome = cgd_ray.run(recipe)
    outcome.evaluation.result.difference
    cgd_ray.read_table(recipe, "examples").to_pandas()

Errors are `CgdError`s with a one-line text. Like the commands, `run` and `compare` join the Ray cluster in
`RAY_ADDRESS`, or start a local one and end it on return; `read_table` starts none.
"""

import io
from collections.abc import Collection, Sequence
from typing import Literal, get_args

import pyarrow as pa
import structlog
from rich.console import Console

from cgd_ray.analysis.measures import Measures
from cgd_ray.config.recipe import Recipe, load_recipe, parse_recipe
from cgd_ray.curation.run import curated_tables
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.pipeline.analyze import analyze_run
from cgd_ray.pipeline.compare import compare_methods
from cgd_ray.pipeline.connect import connected_run, existing_run
from cgd_ray.pipeline.run import PHASES, PhaseName, run_pipeline
from cgd_ray.report.comparison import Comparison
from cgd_ray.report.outcome import Outcome
from cgd_ray.runtime.logs import configure_logging
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.schemas import RESULTS

__all__ = ["CgdError", "Recipe", "analyze", "compare", "load_recipe", "parse_recipe", "read_table", "run"]

TableName = Literal["prompts", "draft", "answer", "critique", "refine", "examples", "dropped"]


def run(recipe: Recipe, phases: Collection[PhaseName] = PHASES) -> Outcome:
    """Run phases of a recipe; finished work is reused, as by the command.

    Args:
        recipe: recipe from `load_recipe`.
        phases: some of `generate`, `train` and `evaluate`; with fewer than all, the earlier ones must be complete.

    Raises:
        CgdError: a phase cannot continue; call it again to resume.
    """
    _log_redacted()
    unknown = sorted({phases} if isinstance(phases, str) else set(phases) - PHASES)
    if unknown:
        raise ConfigError(f"phases {', '.join(unknown)}: unknown. Fix: take a list of {', '.join(sorted(PHASES))}")
    with connected_run(recipe) as found:
        return run_pipeline(found, set(phases))


def compare(recipe: Recipe, methods: Sequence[str], seeds: int = 1) -> Comparison:
    """Train and evaluate students of several methods on the same generated rows.

    Returns outcomes and paired differences.

    Args:
        recipe: recipe with training and evaluation enabled.
        methods: values of `training.method`.
        seeds: students per method, each trained with its own seed.

    Raises:
        ConfigError: there is no such method.
        CgdError: a phase cannot continue; call it again to resume.
    """
    _log_redacted()
    return compare_methods(recipe, methods, seeds, Console(file=io.StringIO()))


def analyze(recipe: Recipe) -> dict[str, Measures]:
    """Measure how far the run's critiques reduce the uncertainty of its refinements, with controls.

    Returns the measures by student: `base`, and `trained` if the run has one.

    Raises:
        CgdError: nothing is curated yet, or no example has all contexts.
    """
    _log_redacted()
    with connected_run(recipe) as found:
        return analyze_run(found)


def read_table(recipe: Recipe, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
    """Return rows of the recipe's run, all in memory, for `.to_pandas()` or `datasets.Dataset(...)`.

    Tables are shared by the runs of a root; rows that only other runs made are left out.

    Args:
        recipe: recipe of the run.
        name: prompts; results of a stage (draft, answer, critique, refine); curated examples or dropped rows.
        columns: columns to return; None for all (`cgd_ray.storage.schemas`).

    Raises:
        ConfigError: there is no such table yet, or no such column.
    """
    _log_redacted()
    if name not in get_args(TableName):
        raise ConfigError(f"table {name}: unknown. Fix: take one of {', '.join(get_args(TableName))}")
    with existing_run(recipe) as found:
        rows = _rows(found, name)
    if rows is None:
        raise ConfigError(f"table {name}: not made yet by run {recipe.run.name}. Fix: run the recipe first")
    unknown = set(columns or ()).difference(rows.schema.names)
    if unknown:
        raise ConfigError(
            f"table {name}: no column {', '.join(sorted(unknown))}. Fix: take some of {', '.join(rows.schema.names)}"
        )
    return rows if columns is None else rows.select(list(columns))


def _rows(run: ResolvedRun, name: TableName) -> pa.Table | None:
    """Return the run's rows of a table; None if there are none yet."""
    if name == "prompts":
        return run.prompts.table.read()
    if name in ("examples", "dropped"):
        examples, dropped = curated_tables(run.recipe, run.join())
        is_curated = examples.description() is not None
        return (examples if name == "examples" else dropped).read() if is_curated else None
    results = [result for row in run.join() if (result := row.results.get(name))]
    return pa.Table.from_pylist(results, RESULTS) if results else None


def _log_redacted() -> None:
    """Keep secrets out of log lines, unless the program has configured its own logging."""
    if not structlog.is_configured():
        configure_logging()
