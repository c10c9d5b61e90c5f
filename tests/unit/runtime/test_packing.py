"""Which node holds which engine. No Ray."""

import pytest

from cgd_ray.runtime.cluster import Cluster, Node
from cgd_ray.runtime.demand import Demand
from cgd_ray.runtime.packing import pack


def nodes(count: int, gpus: float, kind: str | None = None) -> tuple[Node, ...]:
    kinds = frozenset({kind} if kind else ())
    return tuple(Node(64, gpus, kinds, f"{kind}{number}") for number in range(count))


def engines(count: int, gpus: float, kind: str | None = None) -> list[Demand]:
    return [Demand(1, gpus, kind)] * count


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("parallel", [2, 4, 8])
def test_small_engines_share_what_large_ones_leave(count: int, size: int, parallel: int) -> None:
    """One teacher, and students on all other GPUs; one student more has no room."""
    cluster, students = Cluster(nodes(count, size)), count * size - parallel
    fits = parallel <= size
    assert (pack(engines(max(0, students), 1) + engines(1, parallel), cluster) is not None) == fits
    assert pack(engines(max(0, students) + 1, 1) + engines(1, parallel), cluster) is None


@pytest.mark.parametrize(("size", "parallel"), [(2, 2), (4, 2), (4, 4), (8, 4), (8, 8)])
def test_the_totals_are_not_enough(size: int, parallel: int) -> None:
    """Two nodes: students of all but a half of each leave no node for one teacher more."""
    teachers = 2 * size // parallel
    assert pack(engines(teachers, parallel), Cluster(nodes(2, size))) is not None
    assert pack([*engines(teachers - 1, parallel), *engines(1, parallel - 1), *engines(1, 1)], Cluster(nodes(2, size)))
    three_quarters = engines(3, size * 3 // 4 if size > 2 else 1.5 if size < 2 else 2)
    assert pack(three_quarters, Cluster(nodes(2, size))) is None


def test_parts_of_a_gpu_lie_on_one_gpu() -> None:
    node = Cluster(nodes(1, 2))
    assert pack(engines(4, 0.5), node) is not None
    assert pack(engines(2, 0.6), node) is not None
    assert pack(engines(3, 0.6), node) is None  # 1.8 of 2
    assert pack([*engines(2, 0.5), *engines(1, 1)], node) is not None
    assert pack([*engines(2, 0.6), *engines(2, 0.4)], node) is not None
    assert pack([*engines(1, 0.1), *engines(1, 2)], node) is None


def test_kinds_of_gpus_are_no_one_pool() -> None:
    mixed = Cluster(nodes(1, 8, "A100") + nodes(1, 8, "H100"))
    assert pack(engines(2, 8), mixed) is not None
    assert pack(engines(2, 8, "H100"), mixed) is None
    assert pack([*engines(1, 8), *engines(8, 1, "H100")], mixed) is not None  # whoever may goes elsewhere
    assert pack([*engines(9, 1, "H100"), *engines(1, 4)], mixed) is None
    assert pack(engines(1, 1, "B200"), mixed) is None


def test_engines_on_cpu_leave_nodes_with_gpus_alone_and_share_the_others() -> None:
    cluster = Cluster((Node(64, 8, name="gpu"), Node(16, 0, name="one"), Node(16, 0, name="other")))
    placed = pack([Demand(4, 0)] * 4, cluster)
    assert placed is not None
    assert sorted(str(node.name) for node in placed) == ["one", "one", "other", "other"]


def test_nodes_that_may_come_count_with_those_of_their_shape_that_live() -> None:
    shape = Node(64, 8)
    assert pack(engines(3, 8), Cluster(nodes(1, 8), ((shape, 3),))) is not None
    assert pack(engines(4, 8), Cluster(nodes(1, 8), ((shape, 3),))) is None
    assert pack(engines(100, 8), Cluster((), ((shape, float("inf")),))) is not None
    assert pack(engines(1, 8), Cluster((Node(2, 0, name="head"),), ((shape, 0),))) is None
