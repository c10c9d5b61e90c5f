"""Methods side by side: one recipe, the same generated rows, one trained student per method."""

from collections.abc import Mapping
from dataclasses import asdict

import structlog
from rich.console import Console

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import ConfigError
from cgd_ray.pipeline.node_check import check_nodes
from cgd_ray.pipeline.preflight import preflight
from cgd_ray.pipeline.run import run_pipeline
from cgd_ray.report.comparison import print_comparison, write_comparison
from cgd_ray.report.outcome import Outcome
from cgd_ray.runtime.session import ray_session
from cgd_ray.stages.resolved import resolve
from cgd_ray.storage.runs import Run

log = structlog.get_logger(__name__)


def compare_recipes(recipes: Mapping[str, Recipe], console: Console) -> dict[str, Outcome]:
    """Run every phase once per method; what one has generated or evaluated, the next reuses.

    Args:
        recipes: by method: the same recipe but for `training.method`, with evaluation enabled. Each runs as
            `NAME-METHOD`.
        console: where the table goes.

    Returns the outcomes by method, which also become `comparison.json` and `comparison.md` of run `NAME`.

    Raises:
        ConfigError: there is no method, or training or evaluation is switched off.
        CgdError: a phase cannot go on; the same command continues.
    """
    if not recipes:
        raise ConfigError("compare: no method. Fix: name some of training.method's values")
    for recipe in recipes.values():
        if not (recipe.training.enabled and recipe.evaluation.enabled):
            raise ConfigError(
                "compare: training or evaluation is switched off. "
                "Fix: set training.enabled=true and evaluation.enabled=true"
            )
    first = next(iter(recipes.values()))
    store = preflight(first)
    renamed = {method: _named(recipe, method) for method, recipe in recipes.items()}
    # Where one method ran on another CPU, the next must not compute with another type.
    names = [recipe.run.name for recipe in renamed.values()]
    outcomes = {}
    with ray_session():
        check_nodes(store)
        # All before the first is trained, hours later: a model that changes meanwhile is refused, not compared.
        resolved = {method: resolve(recipe, store, runs=names) for method, recipe in renamed.items()}
        for method, run in resolved.items():
            log.info("method", method=method, of=", ".join(resolved))
            outcomes[method] = run_pipeline(run)
    folder = Run(store, first.run.name)
    folder.write_json("comparison.json", {method: asdict(outcome) for method, outcome in outcomes.items()})
    write_comparison(folder, outcomes)
    print_comparison(outcomes, console)
    return outcomes


def _named(recipe: Recipe, method: str) -> Recipe:
    """The recipe under the name that one method's run has in a comparison."""
    section = recipe.run.model_copy(update={"name": f"{recipe.run.name}-{method}"})
    return recipe.model_copy(update={"run": section})
