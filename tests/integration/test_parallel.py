"""Small tasks of no CPU run where there are CPUs, and not on a head that has none."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from cgd_ray.runtime.parallel import parallel_map


@pytest.fixture(scope="module")
def workers() -> Iterator[set[str]]:
    """Ids of two nodes of two CPUs, beside a head without any, on which this process runs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ids = {cluster.add_node(num_cpus=2).node_id for _ in range(2)}
    ray.init(address=cluster.address, log_to_driver=False)
    yield ids
    ray.shutdown()
    cluster.shutdown()


def where(_: int) -> str:
    time.sleep(0.1)
    node: str = ray.get_runtime_context().get_node_id()
    return node


def test_tasks_leave_the_head_alone(workers: set[str]) -> None:
    found = Counter(parallel_map(where, range(16)))
    assert found.keys() == workers
    assert min(found.values()) >= 4
