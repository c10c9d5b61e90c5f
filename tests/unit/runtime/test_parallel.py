"""Which nodes small tasks go to: real numbers of Ray's, without Ray."""

from collections import Counter

from cgd_ray.runtime.parallel import _Node, _places

GIB = 2**30


def node(name: str, cpus: float, memory: float, *, alive: bool = True) -> _Node:
    resources = {"memory": memory * GIB} | ({"CPU": cpus} if cpus else {})
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_a_head_without_cpus_gets_none_of_them() -> None:
    places = _places([node("head", 0, 64), node("a", 4, 64), node("b", 8, 3), node("gone", 8, 64, alive=False)])
    assert Counter(places) == {"a": 4, "b": 3}  # bound by its memory
    assert list(places)[:4] == ["a", "b", "a", "b"]


def test_a_cluster_that_is_only_a_head_works_there() -> None:
    assert list(_places([node("head", 0, 64)])) == ["head"]
