"""Engines of both roles on clusters of many shapes: real Ray nodes with pretend GPUs, scripted engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.scripted import generate, scripted_recipe

ROWS = 60
FEW = {"max_in_flight": 4}  # else fewer engines would do


@contextmanager
def nodes_of(count: int, gpus: int) -> Iterator[None]:
    """A head without GPUs and so many nodes with so many; joined as a submitted job does."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=2, num_gpus=gpus)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RAY_ADDRESS", cluster.address)
            ray.init(address=cluster.address, log_to_driver=False)
            yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize("share", [1, 0.5])
@pytest.mark.parametrize("gpus", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_students_stand_beside_teachers_of_many_gpus(tmp_path: Path, count: int, gpus: int, share: float) -> None:
    """Teachers take half a node, or all nodes but one; students of a GPU or half of one take what is left."""
    teachers, each = (1, gpus // 2) if count == 1 else (count - 1, gpus)
    left = count * gpus - teachers * each
    students = min(6, int(left / share))
    engines = ({"gpus": share, "replicas": students}, {"gpus": each, "replicas": teachers})
    made = scripted_recipe(tmp_path, ROWS, *(FEW | engine for engine in engines))
    with nodes_of(count, gpus):
        result = generate(made)
    assert result.execution == "streaming"
    assert result.counts["refine"]["ok"] == ROWS - 1


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_what_does_not_fit_at_once_runs_one_after_the_other(tmp_path: Path, gpus: int) -> None:
    """Of two nodes the teacher needs one whole, and one student more than the other node holds."""
    made = scripted_recipe(tmp_path, ROWS, FEW | {"gpus": 1, "replicas": gpus + 1}, FEW | {"gpus": gpus})
    with nodes_of(2, gpus):
        result = generate(made)
    assert result.execution == "staged"
    assert result.counts["refine"]["ok"] == ROWS - 1
