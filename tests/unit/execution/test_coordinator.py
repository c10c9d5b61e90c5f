"""What the ledger concludes from deaths: which rows are looked up again, when there is no hope. No Ray."""

import pytest

from cgd_ray.execution.bloom_filter import BloomFilter
from cgd_ray.execution.coordinator import _Coordinator
from cgd_ray.execution.metrics import StageMetrics
from cgd_ray.execution.replicas import Pool
from cgd_ray.execution.supervisor import MOST_DEATHS
from cgd_ray.runtime.demand import Demand
from cgd_ray.storage.transfers import Transfer


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which nodes are alive, as Ray says."""
    nodes = [True]
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": alive} for alive in nodes])
    return nodes


def progress(coordinator: _Coordinator, engine: str) -> None:
    coordinator.report(engine, {"draft": StageMetrics(rows=1)}, None)


@pytest.mark.usefixtures("nodes")
def test_a_block_that_is_begun_again_is_looked_up_and_no_other() -> None:
    coordinator = _Coordinator("teacher", 100)
    for engine in ("one", "other"):
        coordinator.arrive(engine)
    assert coordinator.begin("one", "student", ["a", "b"]).look_again == 0
    assert coordinator.begin("one", "student", ["c", "d"]).look_again == 0
    coordinator.end("one", "student", ["a", "b"], {}, None)  # but Ray may never get what the engine returns
    coordinator.arrive("one")
    assert coordinator.begin("other", "student", ["e"]).look_again == 0
    assert coordinator.begin("other", "teacher", ["a", "b"]).look_again == 0
    first = coordinator.begin("other", "student", ["a", "b"]).look_again
    assert coordinator.begin("one", "student", ["c", "d"]).look_again == first > 0
    coordinator.arrive("other")
    assert coordinator.begin("other", "student", ["a", "b"]).look_again > first  # an earlier listing is too old


def test_a_listing_from_before_a_nodes_death_is_too_old(nodes: list[bool]) -> None:
    coordinator = _Coordinator("teacher", 100)
    coordinator.arrive("one")
    coordinator.begin("one", "student", ["a"])
    before = coordinator.begin("one", "student", ["a"]).look_again
    nodes.append(True)
    assert coordinator.begin("one", "student", ["a"]).look_again == before
    nodes[-1] = False
    assert coordinator.begin("one", "student", ["a"]).look_again > before


def test_an_engine_that_only_ever_dies_ends_the_run() -> None:
    coordinator = _Coordinator("teacher", 100)
    for _ in range(MOST_DEATHS + 1):
        coordinator.arrive("one")
    assert coordinator.snapshot().broken is None
    coordinator.arrive("one")
    assert f"died {MOST_DEATHS + 1} times in a row" in str(coordinator.snapshot().broken)


@pytest.fixture
def named_nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Nodes by their names, and whether they are alive, as Ray says."""
    alive = {"a": True, "b": True}
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": name, "Alive": alive[name]} for name in alive])
    return alive


def test_what_dies_with_its_node_while_it_loads_says_nothing_of_the_model(named_nodes: dict[str, bool]) -> None:
    coordinator = _Coordinator("teacher", 100)
    assert coordinator.arrive("one", node="a") is None
    named_nodes["a"] = False
    assert coordinator.arrive("one", node="b") is None
    assert coordinator.arrive("one", node="b") is None
    assert "died 2 times in a row while it loaded" in str(coordinator.arrive("one", node="b"))


def test_rows_of_a_node_that_is_gone_are_stranded_once_nobody_else_works(
    named_nodes: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgd_ray.execution.coordinator._STRANDED_AFTER_S", -1)
    pools = [Pool("teacher", Demand(1, 0), 2)]
    coordinator = _Coordinator("teacher", 100, pools)
    for engine, node in (("one", "a"), ("other", "b")):
        coordinator.arrive(engine, "teacher", None, node)
        coordinator.up(engine)
        coordinator.begin(engine, "teacher", [f"row of {engine}"])
    assert coordinator.snapshot().stranded == 0
    named_nodes["a"] = False
    assert coordinator.snapshot().stranded == 0  # the other one still works
    coordinator.end("other", "teacher", ["row of other"], {}, None)
    assert coordinator.snapshot().stranded == 1
    coordinator.stopped("other")
    assert coordinator.snapshot().stranded == 0  # and nobody is left to do its rows


@pytest.mark.usefixtures("named_nodes")
def test_a_model_that_comes_is_progress_until_its_engine_is_up() -> None:
    coordinator = _Coordinator("teacher", 100)
    coordinator.arrive("one")
    coordinator.arrive("other")
    coordinator._progress -= 1000
    assert coordinator.snapshot().idle_seconds > 999
    assert coordinator.snapshot().fetching is None
    coordinator.fetching("one", Transfer(10, 100))
    coordinator.fetching("other", Transfer(50, 100))
    assert coordinator.snapshot().idle_seconds < 999
    assert coordinator.snapshot().fetching == (60, 200)
    coordinator.up("other")
    assert coordinator.snapshot().fetching == (10, 100)


def test_deaths_with_work_in_between_do_not_add_up() -> None:
    coordinator = _Coordinator("teacher", 100)
    for _ in range(3 * MOST_DEATHS):
        coordinator.arrive("one")
        progress(coordinator, "one")
    assert coordinator.snapshot().broken is None


def test_loading_again_and_again_is_no_progress() -> None:
    coordinator = _Coordinator("teacher", 100)
    coordinator.arrive("one")
    coordinator.up("one")
    since = coordinator._progress
    coordinator.arrive("one")
    coordinator.up("one")
    assert coordinator._progress == since


def test_what_was_seen_is_known_and_nothing_else() -> None:
    seen = BloomFilter()
    assert all(seen.add(("student", str(number))) for number in range(300_000))
    assert not any(seen.add(("student", str(number))) for number in range(300_000))
    assert all(seen.add(("teacher", str(number))) for number in range(300_000))
