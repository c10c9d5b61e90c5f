"""Methods side by side: one recipe, the same generated rows, one trained student per method."""

from dataclasses import asdict

import structlog
from rich.console import Console

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import ConfigError
from cgd_ray.pipeline.run import run_pipeline
from cgd_ray.report.comparison import print_comparison, write_comparison
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Document, Run

log = structlog.get_logger(__name__)


def run_of(method: str, name: str) -> str:
    """The run of one method in the comparison of this name."""
    return f"{name}-{method}"


def compare_methods(recipes: dict[str, Recipe], store: Store, console: Console) -> Document:
    """Run every phase once per method; what one has generated or evaluated, the next reuses.

    Args:
        recipes: by method: the same recipe but for `training.method`, with evaluation enabled. Each runs as
            `NAME-METHOD`.
        store: the root of all.
        console: where the table goes.

    Returns the outcomes by method, which also become `comparison.json` and `comparison.md` of run `NAME`.

    Raises:
        ConfigError: training or evaluation is switched off.
        CgdError: a phase cannot go on; the same command continues.
    """
    for recipe in recipes.values():
        if not (recipe.training.enabled and recipe.evaluation.enabled):
            raise ConfigError("a comparison needs training.enabled=true and evaluation.enabled=true")
    outcomes = {}
    for method, recipe in recipes.items():
        log.info("method", method=method, of=", ".join(recipes))
        named = recipe.run.model_copy(update={"name": run_of(method, recipe.run.name)})
        outcomes[method] = asdict(run_pipeline(recipe.model_copy(update={"run": named}), store))
    run = Run(store, next(iter(recipes.values())).run.name)
    run.write_json("comparison.json", outcomes)
    write_comparison(run, outcomes)
    print_comparison(outcomes, console)
    return outcomes
