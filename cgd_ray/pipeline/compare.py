"""Compare methods: one recipe, the same generated rows, one trained student per method and training seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import structlog
from rich.console import Console

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.errors import ConfigError
from cgd_ray.evaluation.statistics import Verdicts, all_pairs
from cgd_ray.evaluation.verdicts import read_correct
from cgd_ray.pipeline.node_check import check_nodes
from cgd_ray.pipeline.preflight import preflight
from cgd_ray.pipeline.run import run_pipeline
from cgd_ray.report.comparison import Comparison, print_comparison, write_comparison
from cgd_ray.runtime.session import ray_session
from cgd_ray.stages.resolved import resolve
from cgd_ray.storage.runs import Run

log = structlog.get_logger(__name__)


def compare_methods(recipe: Recipe, methods: Sequence[str], seeds: int, console: Console) -> Comparison:
    """Run every phase once per method and seed; each run reuses what an earlier one generated or evaluated.

    Args:
        recipe: recipe with training and evaluation enabled. Its runs are `NAME-METHOD`, and `NAME-METHOD-seedK` for the
            further seeds.
        methods: values of `training.method`.
        seeds: students per method, trained with `training.seed` and the numbers after it.
        console: console to print the tables to.

    Returns the comparison, which is also written to `comparison.json` and `comparison.md` of run `NAME`.

    Raises:
        ConfigError: there is no such method or none, or training or evaluation is switched off.
        CgdError: a phase cannot continue; rerun the same command to resume.
    """
    if not methods:
        raise ConfigError("compare: no method. Fix: name some of training.method's values")
    if not (recipe.training.enabled and recipe.evaluation.enabled):
        raise ConfigError(
            "compare: training or evaluation is switched off. Fix: set training.enabled=true and "
            "evaluation.enabled=true"
        )
    students = {
        _student(method, seed): _recipe_of(recipe, methods, method, seed) for seed in range(seeds) for method in methods
    }
    store = preflight(next(iter(students.values())))
    # All runs must compute with the same types, even if an earlier one ran on another CPU.
    names = [one.run.name for one in students.values()]
    outcomes = {}
    with ray_session():
        check_nodes(store)
        # Pin the models of all runs before the first training, which takes hours: a model that changes meanwhile is
        # refused, not compared.
        resolved = {student: resolve(one, store, runs=names) for student, one in students.items()}
        for student, run in resolved.items():
            log.info("comparing", student=student, of=", ".join(resolved))
            outcomes[student] = run_pipeline(run)
    section, pairs = recipe.evaluation, {}
    for name, correct in read_correct({student: run.folder for student, run in resolved.items()}).items():
        stacked = {"base": correct["base"][None]} | {method: _stacked(correct, method, seeds) for method in methods}
        pairs[name] = all_pairs(stacked, section.confidence, section.resamples, recipe.run.seed)
    comparison = Comparison(outcomes, pairs)
    folder = Run(store, recipe.run.name)
    folder.write_json("comparison.json", asdict(comparison))
    write_comparison(folder, comparison)
    print_comparison(comparison, console)
    return comparison


def _student(method: str, seed: int) -> str:
    """Name of the student of a method's first, second, ... seed."""
    return f"{method}-seed{seed + 1}" if seed else method


def _recipe_of(recipe: Recipe, methods: Sequence[str], method: str, seed: int) -> Recipe:
    tree = recipe.model_dump(mode="json")
    tree["run"]["name"] = f"{recipe.run.name}-{_student(method, seed)}"
    tree["training"] |= {"method": method, "compared_with": list(methods)}
    if seed:
        tree["training"]["seed"] = recipe.training_seed + seed
    return parse_recipe(tree, "compare")


def _stacked(correct: Mapping[str, Verdicts], method: str, seeds: int) -> Verdicts:
    """Return a method's verdicts, shape (seeds, samples, questions)."""
    return np.stack([correct[_student(method, seed)] for seed in range(seeds)])
