"""When a run goes on with fewer engines, and when it ends: what is concluded from engines that cannot start. No Ray."""

from itertools import count

import pytest

from cgd_ray.errors import CgdError
from cgd_ray.execution import replicas
from cgd_ray.execution.replicas import Pool, Replicas
from cgd_ray.runtime.cluster import Cluster, Node
from cgd_ray.runtime.demand import Demand


class Group:
    """A placement group in name only."""

    numbers = count()

    def __init__(self, bundles: list[dict[str, float]], _strategy: str, **options: object) -> None:
        self.id = self
        self.bundles, self.options = bundles, options
        self.name = f"group {next(self.numbers)}"
        self.state = "CREATED"

    def hex(self) -> str:
        return self.name


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    """The groups that were asked for, in their order; time does not matter."""
    groups: list[Group] = []

    def make(*arguments: object, **options: object) -> Group:
        groups.append(Group(*arguments, **options))  # type: ignore[arg-type]
        return groups[-1]

    monkeypatch.setattr("cgd_ray.compat.ray_core.placement_group", make)
    monkeypatch.setattr(replicas, "remove_placement_group", lambda group: setattr(group, "state", "REMOVED"))
    monkeypatch.setattr(replicas, "placement_group_table", lambda group: {"state": group.state})
    monkeypatch.setattr(replicas, "_PLACEMENT_WAIT_S", -1)
    return groups


def engines(number: int, fewest: int = 1, *, may_come: bool = False) -> Replicas:
    made = Replicas([Pool("teacher", Demand(1, 2), number, fewest, may_come)])
    made.request(Cluster(tuple(Node(8, 2, name=f"node{index}") for index in range(number))))
    return made


def start(run: Replicas, engine: str) -> str:
    place = run.take("teacher").id.hex()
    run.arrive(engine, "teacher", place)
    return str(place)


def refuse(run: Replicas, engine: str, place: str | None, node: str, error: str = "no disk") -> None:
    run.give_up(engine, "teacher", place, node, CgdError(error))


def test_large_engines_are_asked_for_first_each_on_the_node_that_packing_found(made: list[Group]) -> None:
    run = Replicas([Pool("student", Demand(1, 1), 2), Pool("teacher", Demand(1, 2), 1)])
    run.request(Cluster((Node(8, 2, name="one"), Node(8, 2, name="other"))))
    assert [group.bundles[0]["GPU"] for group in made] == [2, 1, 1]
    hints = [group.options["_soft_target_node_id"] for group in made]
    assert hints[1] == hints[2] != hints[0]


def test_no_role_takes_the_room_of_anothers_first_engine(made: list[Group]) -> None:
    run = Replicas([Pool("student", Demand(1, 1), 2), Pool("teacher", Demand(1, 2), 3, min_replicas=2)])
    run.request(Cluster((Node(8, 2, name="one"), Node(8, 2, name="other"))))
    assert [group.bundles[0]["GPU"] for group in made] == [2, 2, 1, 2, 1]


def test_an_engine_that_cannot_start_is_tried_on_another_node(made: list[Group]) -> None:
    run = engines(2)
    place = start(run, "a")
    start(run, "b")
    run.up("b")
    refuse(run, "a", place, "node0")
    assert run.broken() is None
    run.take("teacher")
    assert made[0].state == "REMOVED"
    assert made[-1].options["bundle_label_selector"] == [{"ray.io/node-id": "!in(node0)"}]


def test_fewer_than_the_minimum_end_the_run_once_no_other_place_is_there(made: list[Group]) -> None:
    run = engines(2, 2)
    place = start(run, "a")
    start(run, "b")
    run.up("b")
    refuse(run, "a", place, "node0")
    assert run.broken() is None  # its successor may find a place
    run.take("teacher")
    made[-1].state = "PENDING"
    run.broken()
    assert str(run.broken()) == "no disk"


def test_where_nodes_may_come_it_is_waited_for_but_not_for_ever(made: list[Group]) -> None:
    run = engines(2, 2, may_come=True)
    start(run, "b")
    run.up("b")
    place = start(run, "a")
    for number in range(5):
        refuse(run, f"a{number}", place, f"node{number}")
        place = str(run.take("teacher").id.hex())
        made[-1].state = "PENDING"
        assert run.broken() is None, number
        run.arrive(f"a{number + 1}", "teacher", place)
    run.give_up("a", "teacher", None, "node9", CgdError("no disk"))
    refuse(run, "a5", place, "node5")
    run.take("teacher")
    made[-1].state = "PENDING"
    run.broken()
    assert run.broken() is not None
    assert made[-1].options["bundle_label_selector"] == [{"ray.io/node-id": "none"}]


def test_a_model_that_starts_on_two_nodes_alike_not_is_wrong() -> None:
    run = engines(8, may_come=True)
    places = [start(run, name) for name in ("a", "b", "c")]
    refuse(run, "a", places[0], "node0", "no such model (pid 17)")
    refuse(run, "b", places[1], "node1", "no such model (pid 4711)")
    assert run.broken() is None  # one may start yet
    refuse(run, "c", places[2], "node1", "no such model (pid 3)")
    assert str(run.broken()) == "no such model (pid 3)"


def test_where_all_fail_alike_on_the_only_node_others_are_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    run = engines(2, may_come=True)
    places = [start(run, name) for name in ("a", "b")]
    for name, place in zip(("a", "b"), places, strict=True):
        refuse(run, name, place, "node0", "no room for the cache")
    assert run.broken() is None  # a node may come
    monkeypatch.setattr(replicas, "_SAME_ERROR_WAIT_S", -1)
    assert str(run.broken()) == "no room for the cache"
    run.arrive("c", "teacher", run.take("teacher").id.hex())
    assert run.broken() is None  # one has come, and loads


def test_different_troubles_say_nothing_of_the_model() -> None:
    run = engines(8, may_come=True)
    places = [start(run, name) for name in ("a", "b")]
    refuse(run, "a", places[0], "node0", "no disk")
    refuse(run, "b", places[1], "node1", "no GPU")
    assert run.broken() is None


def test_a_lost_engine_keeps_its_place_and_the_run_goes_on(made: list[Group]) -> None:
    run = engines(2)
    for name in ("a", "b"):
        start(run, name)
        run.up(name)
    refuse(run, "a", None, "node0", "its GPU is gone")
    assert run.broken() is None
    refuse(run, "b", None, "node1", "its GPU is gone")
    run.broken()
    assert str(run.broken()) == "its GPU is gone"
    assert {group.state for group in made} == {"CREATED"}
    run.remove_places()
    assert {group.state for group in made} == {"REMOVED"}
