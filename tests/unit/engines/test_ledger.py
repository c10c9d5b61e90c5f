"""What the ledger concludes from deaths: which rows are looked up again, when there is no hope. No Ray."""

from collections.abc import Callable

import pytest

from cgd_ray.engines.ledger import _Ledger
from cgd_ray.engines.tally import StageTally
from cgd_ray.engines.ward import MOST_DEATHS

Nodes = Callable[[list[str]], None]


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """Says which nodes there are; the ledger looks every time."""
    monkeypatch.setattr("cgd_ray.engines.ledger._NODES_SECONDS", -1.0)
    nodes: list[str] = ["head"]
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": name, "Alive": True} for name in nodes])

    def say(names: list[str]) -> None:
        nodes[:] = names

    return say


def progress(ledger: _Ledger, engine: str) -> None:
    ledger.report(engine, {"draft": StageTally(rows=1)}, None)


@pytest.mark.usefixtures("alive")
def test_after_an_engines_death_its_own_rows_are_looked_up_and_no_others() -> None:
    ledger = _Ledger()
    for engine in ("one", "other"):
        ledger.arrive(engine)
    assert ledger.begin("one", ["a", "b"]).look_again == 0
    ledger.arrive("one")
    assert ledger.begin("other", ["c"]).look_again == 0
    assert ledger.begin("other", ["b", "d"]).look_again == 1
    ledger.end("other", ["b", "d"], {}, None)
    assert ledger.begin("other", ["b"]).look_again == 0
    assert ledger.begin("one", ["a"]).look_again == 1


def test_after_a_nodes_death_every_row_is_looked_up(alive: Nodes) -> None:
    ledger = _Ledger()
    ledger.arrive("one")
    alive(["head", "worker"])
    assert ledger.begin("one", ["a"]).look_again == 0
    alive(["head"])
    assert ledger.begin("one", ["b"]).look_again == 1
    assert ledger.begin("one", ["c"]).look_again == 1
    alive(["head", "worker"])
    ledger.begin("one", ["d"])
    alive(["head"])
    assert ledger.begin("one", ["e"]).look_again == 2  # a listing from before this death is too old


def test_an_engine_that_only_ever_dies_ends_the_run() -> None:
    ledger = _Ledger()
    for _ in range(MOST_DEATHS + 1):
        ledger.arrive("one")
    assert ledger.snapshot().broken is None
    ledger.arrive("one")
    assert f"died {MOST_DEATHS + 1} times in a row" in str(ledger.snapshot().broken)


def test_deaths_with_work_in_between_do_not_add_up() -> None:
    ledger = _Ledger()
    for _ in range(3 * MOST_DEATHS):
        ledger.arrive("one")
        progress(ledger, "one")
    assert ledger.snapshot().broken is None


def test_loading_again_and_again_is_no_progress() -> None:
    ledger = _Ledger()
    ledger.arrive("one")
    ledger.up("one")
    since = ledger._progress
    ledger.arrive("one")
    ledger.up("one")
    assert ledger._progress == since
