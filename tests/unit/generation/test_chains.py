"""What the engines of a run ask for, by how they share the cluster. No Ray."""

from pathlib import Path

import pytest

from cgd_ray.generation import run
from cgd_ray.generation.run import _chains
from cgd_ray.runtime.cluster import Cluster, Node
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from tests.unit.generation.test_planning import recipe


@pytest.mark.parametrize(("teacher", "cpus"), [({"type": "openai", "model": "t"}, 8), ({"type": "scripted"}, 4)])
def test_an_http_teacher_leaves_all_cores_to_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr(run, "read_cluster", lambda: Cluster((Node(8, 0),)))
    student = {"model": "demo:smollm2-135m", "engine": {"type": "vllm", "gpus_per_worker": 0}}
    made = recipe(tmp_path, student=student, teacher={"engine": teacher})
    chains = _chains(made, open_run(made, Store(str(tmp_path))).stages.all, 0.0)
    assert {chain.role: chain.cpus for chain in chains}["student"] == cpus
