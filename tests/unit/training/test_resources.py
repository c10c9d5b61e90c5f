"""How many CPUs a worker gets where the recipe does not say: as many as all of them have room for."""

import pytest

from cgd_ray.config.training import TrainingSection
from cgd_ray.runtime.device import PRETEND_GPUS
from cgd_ray.training.launch.resources import worker_resources

Node = dict[str, float]
HEAD = {"CPU": 16.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ([{"CPU": 8.0}], 2, 4),
        ([{"CPU": 6.0}, {"CPU": 2.0}], 2, 3),  # half of all would fit once
        ([{"CPU": 2.0}], 4, 1),
        ([HEAD, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}], 2, 4),
        ([HEAD, {"CPU": 64.0, "GPU": 4.0}], 4, 8),
        ([{"CPU": 64.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 2.0}], 4, 2),
    ],
)
def test_all_workers_have_room(monkeypatch: pytest.MonkeyPatch, nodes: list[Node], workers: int, cpus: int) -> None:
    if any("GPU" in node for node in nodes):
        monkeypatch.setenv(PRETEND_GPUS, "1")
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    monkeypatch.setattr("ray.cluster_resources", lambda: total)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    assert worker_resources(TrainingSection(workers=workers)).cpus == cpus
