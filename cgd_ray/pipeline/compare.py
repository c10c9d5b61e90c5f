"""Methods side by side: one recipe, the same generated rows, one trained student per method."""

from dataclasses import asdict

import structlog
from rich.console import Console

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import ConfigError
from cgd_ray.pipeline.run import run_pipeline
from cgd_ray.report.comparison import print_comparison, write_comparison
from cgd_ray.report.outcome import Outcome
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.runs import Run

log = structlog.get_logger(__name__)


def named(recipe: Recipe, method: str) -> Recipe:
    """The recipe under the name that one method's run has in a comparison."""
    section = recipe.run.model_copy(update={"name": f"{recipe.run.name}-{method}"})
    return recipe.model_copy(update={"run": section})


def compare_methods(runs: dict[str, ResolvedRun], name: str, console: Console) -> dict[str, Outcome]:
    """Run every phase once per method; what one has generated or evaluated, the next reuses.

    Args:
        runs: by method: the same recipe but for `training.method` and its name, with evaluation enabled.
        name: the run whose folder gets `comparison.json` and `comparison.md`.
        console: where the table goes.

    Returns the outcomes by method.

    Raises:
        ConfigError: training or evaluation is switched off.
        CgdError: a phase cannot go on; the same command continues.
    """
    for run in runs.values():
        recipe = run.recipe
        if not (recipe.training.enabled and recipe.evaluation.enabled):
            raise ConfigError("a comparison needs training.enabled=true and evaluation.enabled=true")
    outcomes = {}
    for method, run in runs.items():
        log.info("method", method=method, of=", ".join(runs))
        outcomes[method] = run_pipeline(run)
    folder = Run(next(iter(runs.values())).store, name)
    folder.write_json("comparison.json", {method: asdict(outcome) for method, outcome in outcomes.items()})
    write_comparison(folder, outcomes)
    print_comparison(outcomes, console)
    return outcomes
