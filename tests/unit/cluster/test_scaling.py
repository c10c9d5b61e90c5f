"""The clusters of the manifests grow from their head alone as far as each phase needs, by Ray's own autoscaler."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.serve._private.build_app import build_app
from ray.serve.config import HTTPOptions

from cgd_ray.serving.app import build

from .conftest import Manifest
from .scaling import Autoscaler, Group, Phase, launched, only_running, phases
from .test_manifests import DOCUMENT, clusters, of_kind, recipe_of, serve_args, serve_config


@pytest.fixture
def job(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> Autoscaler:
    autoscaler = Autoscaler(of_kind(manifests, "RayJob")["spec"]["rayClusterSpec"])
    only_running([autoscaler.head], monkeypatch)
    autoscaler.pretend_packages(monkeypatch)
    return autoscaler


@pytest.fixture
def service(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> Autoscaler:
    autoscaler = Autoscaler(of_kind(manifests, "RayService")["spec"]["rayClusterConfig"])
    autoscaler.pretend_packages(monkeypatch)
    return autoscaler


def test_every_phase_gets_its_nodes(job: Autoscaler, manifests: list[Manifest], tmp_path: Path) -> None:
    recipe = recipe_of(manifests, tmp_path)
    for phase in phases(recipe):
        nodes = launched(job.decide(phase))
        assert set(nodes) == set(job.workers), phase.name  # where there are GPU nodes, each phase works on them


def test_the_service_gets_its_nodes(
    service: Autoscaler, manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = serve_args(manifests)
    for replicas in (args.min_replicas, args.max_replicas):
        nodes = launched(service.decide(serving_phase(args.model_dump(), replicas, monkeypatch)))
        assert set(nodes) == set(service.workers)


def serving_phase(args: dict[str, Any], replicas: int, monkeypatch: pytest.MonkeyPatch) -> Phase:
    """What the application's replicas ask for, from the very application; building it would start a Ray."""
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(runtime_env={}))
    single, groups = [], []
    for deployment in build_app(build(args), name="student").deployments:
        config = deployment._replica_config
        if config.placement_group_bundles:
            groups += [Group(config.placement_group_bundles, config.placement_group_strategy)] * replicas
        else:
            single.append(config.resource_dict)
    return Phase("serving", single, groups)


@pytest.mark.parametrize(
    "phase",
    [
        Phase("other cards", [{"GPU": 1.0, "accelerator_type:another": 0.001}], []),
        Phase("an engine larger than a node", [{"GPU": 9.0}], []),
        Phase("a replica over two nodes", [], [Group([{"GPU": 5.0}, {"GPU": 5.0}], "STRICT_PACK")]),
        Phase("more nodes than the group may have", [], [Group([{"GPU": 8.0}] * 3, "PACK")]),
        Phase("a reservation", [], [], reserved=[{"accelerator_type:another": 0.001}]),
    ],
    ids=lambda phase: phase.name,
)
def test_what_no_node_can_hold_is_noticed(job: Autoscaler, phase: Phase) -> None:
    with pytest.raises(AssertionError):
        launched(job.decide(phase))


def test_what_needs_no_core_stays_on_the_head(job: Autoscaler, manifests: list[Manifest]) -> None:
    """Drivers, readers, controllers and proxies: a head without cores is enough for them, and no node is started."""
    assert "entrypointNumCpus" not in of_kind(manifests, "RayJob")["spec"]
    assert HTTPOptions(**serve_config(manifests)["http_options"]).num_cpus == 0
    assert not launched(job.decide(Phase("small tasks", [{"CPU": 0.0}, {}], [])))


def test_nothing_works_on_the_head_of_a_cluster_with_workers(manifests: list[Manifest]) -> None:
    for spec in clusters(manifests):
        autoscaler = Autoscaler(spec)
        assert (autoscaler.head["CPU"] == 0) == bool(autoscaler.workers)
        assert "GPU" not in autoscaler.head


def accelerators(manifests: list[Manifest]) -> Iterator[tuple[dict[str, float], int]]:
    """Resources that worker groups name in the flag that KubeRay writes into a shell command, and their GPUs."""
    for spec in clusters(manifests):
        for group in spec["workerGroupSpecs"]:
            (flag,) = shlex.split(group["rayStartParams"]["resources"])
            yield json.loads(flag), Autoscaler(spec).workers[group["groupName"]]["GPU"]


def test_a_started_node_has_what_its_group_promises(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray adds the type of the cards that it finds; the one that is declared is the same, and there once."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for declared, gpus in accelerators(manifests):
        (name,) = declared
        found = name.removeprefix("accelerator_type:")
        monkeypatch.setattr(NvidiaGPUAcceleratorManager, "get_current_node_accelerator_type", lambda found=found: found)
        node = ResourceAndLabelSpec(num_cpus=1, num_gpus=gpus, resources=dict(declared))
        resources = node.resolve(is_head=False, node_ip_address="10.0.0.1").to_resource_dict()
        assert {key: value for key, value in resources.items() if found in key} == declared == {name: 1}


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("NVIDIA B200", "B200"), ("NVIDIA L40S", "L40S"),
        ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA L4", "L4"), ("NVIDIA A10G", "A10G"), ("Tesla T4", "T4"),
    ],
)  # fmt: skip
def test_the_documented_names_are_rays(card: str, name: str) -> None:
    assert NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(card) == name
    assert f"`{name}`" in DOCUMENT
