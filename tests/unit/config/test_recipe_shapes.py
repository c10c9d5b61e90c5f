"""Every shipped recipe fits the cluster that its head names."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from cgd_ray.config.recipe import Recipe, load_recipe
from cgd_ray.inference.vllm.options import VllmOptions
from cgd_ray.training.memory import memory, model_sizes
from tests.unit.cluster.scaling import Autoscaler, launched, only_running, phases

RECIPES = sorted((Path(__file__).parents[3] / "jobs" / "recipes").glob("*.yaml"))
SHAPE = re.compile(r"^# Fits (\d+) nodes? of (\d+) CPUs(?: and (\d+) ([\w-]+))?\b", flags=re.MULTILINE)
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
GPU_BYTES = 80e9


def pods(limits: dict[str, str], **params: str) -> dict[str, Any]:
    container = {"resources": {"limits": limits}}
    return {"rayStartParams": params, "template": {"spec": {"containers": [container]}}}


def named_cluster(path: Path) -> tuple[int, dict[str, Any]]:
    """Number of nodes, and a RayCluster's specification of them: without GPUs, the head is the one node."""
    (found,) = SHAPE.findall(path.read_text())
    nodes, cpus, gpus, kind = int(found[0]), found[1], found[2], found[3]
    if not gpus:
        assert nodes == 1
        return nodes, {"headGroupSpec": pods({"cpu": cpus}), "workerGroupSpecs": []}
    declared = rf'"{{\"accelerator_type:{kind}\": 1}}"'
    group = {"groupName": "gpu", "minReplicas": 0, "maxReplicas": nodes}
    workers = group | pods({"cpu": cpus, "nvidia.com/gpu": gpus}, resources=declared)
    head = pods({"cpu": "8"}, **{"num-cpus": "0"})
    return nodes, {"headGroupSpec": head, "workerGroupSpecs": [workers]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
@pytest.mark.parametrize("from_zero", [True, False])
def test_a_recipe_fits_the_cluster_that_it_names(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, from_zero: bool
) -> None:
    nodes, spec = named_cluster(path)
    autoscaler = Autoscaler(spec)
    workers = [] if from_zero else [*autoscaler.workers.values()] * nodes
    only_running([autoscaler.head, *workers], monkeypatch)
    autoscaler.pretend_packages(monkeypatch)
    wanted = {phase.name: launched(autoscaler.decide(phase)) for phase in phases(load_recipe(path))}
    if autoscaler.workers:
        assert max(count["gpu"] for count in wanted.values()) == nodes  # and needs all of it
    else:
        assert not any(wanted.values())


def names_of_cards(recipe: Recipe) -> set[str | None]:
    """Where a recipe says so: engines on CPU and endpoints do not."""
    engines = [engine for engine in (recipe.student.engine, recipe.teacher.engine) if isinstance(engine, VllmOptions)]
    return {*(engine.accelerator_type for engine in engines), recipe.training.resources.accelerator_type}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_part_of_a_recipe_names_its_cards(path: Path) -> None:
    (found,) = SHAPE.findall(path.read_text())
    assert names_of_cards(load_recipe(path)) == {found[3] or None}


@pytest.mark.parametrize("path", [path for path in RECIPES if path.name.startswith("llama31")], ids=lambda p: p.name)
def test_training_fits_its_gpus(path: Path, tmp_path: Path) -> None:
    training = load_recipe(path).training.model_copy(update={"precision": "bf16"})  # as `auto` takes on GPUs
    LlamaConfig(**LLAMA_8B).save_pretrained(tmp_path)
    longest = np.full(training.batch_size, training.max_length)
    usual, largest = (
        memory(model_sizes(tmp_path, training, longest, supervised), training).device
        for supervised in (longest // 4, longest - 1)
    )
    assert usual < largest < 0.9 * GPU_BYTES
    said = re.findall(r"(\d+) GB of its GPU where .* and (\d+)\n", path.read_text())
    assert all((round(usual / 1e9), round(largest / 1e9)) == tuple(map(int, figures)) for figures in said)
