"""What the ledger concludes from deaths: which rows are looked up again, when there is no hope. No Ray."""

import pytest

from cgd_ray.execution.bloom_filter import Seen
from cgd_ray.execution.coordinator import _Ledger
from cgd_ray.execution.metrics import StageTally
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


def progress(ledger: _Ledger, engine: str) -> None:
    ledger.report(engine, {"draft": StageTally(rows=1)}, None)


@pytest.mark.usefixtures("nodes")
def test_a_block_that_is_begun_again_is_looked_up_and_no_other() -> None:
    ledger = _Ledger("teacher", 100)
    for engine in ("one", "other"):
        ledger.arrive(engine)
    assert ledger.begin("one", "student", ["a", "b"]).look_again == 0
    assert ledger.begin("one", "student", ["c", "d"]).look_again == 0
    ledger.end("one", "student", ["a", "b"], {}, None)  # but Ray may never get what the engine returns
    ledger.arrive("one")
    assert ledger.begin("other", "student", ["e"]).look_again == 0
    assert ledger.begin("other", "teacher", ["a", "b"]).look_again == 0
    first = ledger.begin("other", "student", ["a", "b"]).look_again
    assert ledger.begin("one", "student", ["c", "d"]).look_again == first > 0
    ledger.arrive("other")
    assert ledger.begin("other", "student", ["a", "b"]).look_again > first  # an earlier listing is too old


def test_a_listing_from_before_a_nodes_death_is_too_old(nodes: list[bool]) -> None:
    ledger = _Ledger("teacher", 100)
    ledger.arrive("one")
    ledger.begin("one", "student", ["a"])
    before = ledger.begin("one", "student", ["a"]).look_again
    nodes.append(True)
    assert ledger.begin("one", "student", ["a"]).look_again == before
    nodes[-1] = False
    assert ledger.begin("one", "student", ["a"]).look_again > before


def test_an_engine_that_only_ever_dies_ends_the_run() -> None:
    ledger = _Ledger("teacher", 100)
    for _ in range(MOST_DEATHS + 1):
        ledger.arrive("one")
    assert ledger.snapshot().broken is None
    ledger.arrive("one")
    assert f"died {MOST_DEATHS + 1} times in a row" in str(ledger.snapshot().broken)


@pytest.fixture
def named_nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Nodes by their names, and whether they are alive, as Ray says."""
    alive = {"a": True, "b": True}
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": name, "Alive": alive[name]} for name in alive])
    return alive


def test_what_dies_with_its_node_while_it_loads_says_nothing_of_the_model(named_nodes: dict[str, bool]) -> None:
    ledger = _Ledger("teacher", 100)
    assert ledger.arrive("one", node="a") is None
    named_nodes["a"] = False
    assert ledger.arrive("one", node="b") is None
    assert ledger.arrive("one", node="b") is None
    assert "died 2 times in a row while it loaded" in str(ledger.arrive("one", node="b"))


def test_rows_of_a_node_that_is_gone_are_stranded_once_nobody_else_works(
    named_nodes: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgd_ray.execution.coordinator._STRANDED_SECONDS", -1)
    pools = [Pool("teacher", Demand(1, 0), 2)]
    ledger = _Ledger("teacher", 100, pools)
    for engine, node in (("one", "a"), ("other", "b")):
        ledger.arrive(engine, "teacher", None, node)
        ledger.up(engine)
        ledger.begin(engine, "teacher", [f"row of {engine}"])
    assert ledger.snapshot().stranded == 0
    named_nodes["a"] = False
    assert ledger.snapshot().stranded == 0  # the other one still works
    ledger.end("other", "teacher", ["row of other"], {}, None)
    assert ledger.snapshot().stranded == 1
    ledger.stopped("other")
    assert ledger.snapshot().stranded == 0  # and nobody is left to do its rows


@pytest.mark.usefixtures("named_nodes")
def test_a_model_that_comes_is_progress_until_its_engine_is_up() -> None:
    ledger = _Ledger("teacher", 100)
    ledger.arrive("one")
    ledger.arrive("other")
    ledger._progress -= 1000
    assert ledger.snapshot().idle_seconds > 999
    assert ledger.snapshot().fetching is None
    ledger.fetching("one", Transfer(10, 100))
    ledger.fetching("other", Transfer(50, 100))
    assert ledger.snapshot().idle_seconds < 999
    assert ledger.snapshot().fetching == (60, 200)
    ledger.up("other")
    assert ledger.snapshot().fetching == (10, 100)


def test_deaths_with_work_in_between_do_not_add_up() -> None:
    ledger = _Ledger("teacher", 100)
    for _ in range(3 * MOST_DEATHS):
        ledger.arrive("one")
        progress(ledger, "one")
    assert ledger.snapshot().broken is None


def test_loading_again_and_again_is_no_progress() -> None:
    ledger = _Ledger("teacher", 100)
    ledger.arrive("one")
    ledger.up("one")
    since = ledger._progress
    ledger.arrive("one")
    ledger.up("one")
    assert ledger._progress == since


def test_what_was_seen_is_known_and_nothing_else() -> None:
    seen = Seen()
    assert all(seen.add(("student", str(number))) for number in range(300_000))
    assert not any(seen.add(("student", str(number))) for number in range(300_000))
    assert all(seen.add(("teacher", str(number))) for number in range(300_000))
