"""Recipes whose engines answer by script, and their generation."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.execution.actor_pool import Chain
from cgd_ray.execution.chains import build_chain
from cgd_ray.generation.run import GenerationResult, run_generation
from cgd_ray.inference.base import Engine
from cgd_ray.inference.scripted import ScriptedOptions
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store


def scripted_recipe(
    root: Path, rows: int, student: dict[str, Any], teacher: dict[str, Any], **generation: Any
) -> Recipe:
    """Of so many prompts, one of them held out; what is given of engines and generation is set there."""
    prompts = "".join(f'{{"prompt": "Question {number}."}}\n' for number in range(rows))
    (root / "data.jsonl").write_text(prompts)
    tree: dict[str, Any] = {
        "run": {"name": "r", "root": str(root)},
        "storage": {"flush_seconds": 0.5},
        "data": {"type": "jsonl", "path": str(root / "data.jsonl"), "holdout": {"count": 1}},
        "student": {"model": "s", "engine": {"type": "scripted", **student}},
        "teacher": {"engine": {"type": "scripted", "model": "t", **teacher}},
        "evaluation": {"enabled": False},
        "generation": generation,
    }
    return parse_recipe(tree, "test")


def use_engine(monkeypatch: pytest.MonkeyPatch, make: Callable[[ScriptedOptions], Engine]) -> None:
    """Let scripted engines of generation be these; `make` is pickled, and called in the engine's own process."""

    def build(role: str, options: ScriptedOptions, *others: Any, **more: Any) -> Chain:
        return replace(build_chain(role, options, *others, **more), make_engine=partial(make, options))

    monkeypatch.setattr("cgd_ray.generation.run.build_chain", build)


def generate(made: Recipe) -> GenerationResult:
    """Prepare the prompts and generate, on the cluster that this process has joined."""
    store = Store(made.run.root)
    return run_generation(open_run(made, store))
