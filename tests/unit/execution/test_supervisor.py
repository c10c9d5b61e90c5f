"""An engine that dies: rows go on, the killer is found, innocents are not held back. No Ray."""

import asyncio

import pytest

from cgd_ray.errors import CgdError
from cgd_ray.execution.quarantine import Suspicion
from cgd_ray.execution.supervisor import RestartingEngine
from cgd_ray.inference.base import Completion, CompletionError, Decoding, EngineDiedError, PoisonError, Request

Outcome = Completion | Exception


class Mortal:
    """Dies a moment after a request for a poisonous row came, with all that is on it, and stays dead."""

    def __init__(self, log: "Log", poison: set[str]) -> None:
        self._log = log
        self._poison = poison
        self._dead = asyncio.Event()

    async def start(self) -> None:
        self._log.starts += 1

    async def complete(self, request: Request) -> Completion:
        if self._dead.is_set():
            raise EngineDiedError("dead")
        if {request.row, request.key} & self._poison:
            asyncio.get_running_loop().call_later(0.001, self._dead.set)
        done, _ = await asyncio.wait(
            [asyncio.create_task(asyncio.sleep(0.005)), asyncio.create_task(self._dead.wait())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert done
        if self._dead.is_set():
            raise EngineDiedError("dead")
        if request.row.startswith("bad"):
            raise CompletionError("refused")
        return Completion(request.row, truncated=False, finish_reason="stop", prompt_tokens=1, completion_tokens=1)

    async def close(self) -> None:
        self._log.closes += 1


class Log:
    def __init__(self) -> None:
        self.starts = 0
        self.closes = 0
        self.reports: list[set[str] | None] = []


def request(row: str, stage: str = "draft") -> Request:
    return Request(f"{stage}-{row}", row, (), Decoding(1, 0.0, 1.0, 0))


async def walk(engine: RestartingEngine, row: str, *stages: str) -> Completion:
    """One request after the other, as a chain does, and then no more."""
    try:
        for stage in stages:
            made = await engine.complete(request(row, stage))
    finally:
        await engine.left(row)
    return made


def run(
    rows: list[str], poison: set[str], held: dict[str, Suspicion] | None = None, stages: tuple[str, ...] = ("draft",)
) -> tuple[Log, dict[str, Outcome]]:
    log = Log()

    async def report(inside: set[str] | None) -> None:
        log.reports.append(inside)

    async def scenario() -> dict[str, Outcome]:
        engine = RestartingEngine(lambda: Mortal(log, poison), report)
        for row, suspicion in (held or {}).items():
            engine.suspicions.hold(row, suspicion)
        await engine.start()
        made = await asyncio.gather(*(walk(engine, row, *stages) for row in rows), return_exceptions=True)
        await engine.close()
        assert not engine.suspicions.any_suspect
        return dict(zip(rows, made, strict=True))  # type: ignore[arg-type]

    return log, asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_the_killer_is_found_and_all_others_finish(count: int) -> None:
    rows = [f"row{number}" for number in range(count)]
    killer = rows[count // 2]
    log, made = run(rows, {killer})
    assert isinstance(made.pop(killer), PoisonError)
    assert all(isinstance(outcome, Completion) for outcome in made.values())
    assert log.starts == log.closes
    assert log.starts - 1 <= 2 + count.bit_length()  # two deaths of all, then half as many suspects each time
    if count > 1:
        assert log.reports[-1] is None


def test_a_row_that_kills_with_its_second_request_is_found() -> None:
    rows = [f"row{number}" for number in range(16)]
    log, made = run(rows, {"refine-row5"}, stages=("critique", "refine"))
    assert {row for row, outcome in made.items() if isinstance(outcome, PoisonError)} == {"row5"}
    assert sum(isinstance(outcome, Completion) for outcome in made.values()) == 15
    assert log.starts <= 8


def test_suspicion_outlasts_a_row_s_first_request() -> None:
    """This process may die with the second one, and only what was reported before says who was on it."""
    log, made = run(["row0", "row1"], set(), {"row0": Suspicion(2, 1)}, stages=("critique", "refine"))
    assert all(isinstance(outcome, Completion) for outcome in made.values())
    assert log.reports == [{"row0"}, {"row0"}, None]


def test_two_killers_are_both_found() -> None:
    rows = [f"row{number}" for number in range(20)]
    log, made = run(rows, {"row3", "row17"})
    assert {row for row, outcome in made.items() if isinstance(outcome, PoisonError)} == {"row3", "row17"}
    assert sum(isinstance(outcome, Completion) for outcome in made.values()) == 18
    assert log.starts < 20


def test_suspects_run_only_with_suspects_and_are_named_before_they_run() -> None:
    held = {f"row{number}": Suspicion(2, 2) for number in range(4)}
    log, made = run([f"row{number}" for number in range(8)], set(), held)
    assert all(isinstance(outcome, Completion) for outcome in made.values())
    named = [report for report in log.reports if report]
    assert named
    assert all(len(report) <= 2 and report <= held.keys() for report in named)


def test_what_was_found_out_elsewhere_convicts_here() -> None:
    log, made = run(["row0", "row1"], set(), {"row0": Suspicion(3, 0)})
    assert isinstance(made["row0"], PoisonError)
    assert "died 3 times with this row on it, the last time alone" in str(made["row0"])
    assert isinstance(made["row1"], Completion)
    assert log.starts == 1


def test_a_failing_row_is_no_death() -> None:
    log, made = run(["bad", "row"], set())
    assert isinstance(made["bad"], CompletionError)
    assert not isinstance(made["bad"], PoisonError)
    assert log.starts == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [(CgdError("no memory left"), "no memory left"), (KeyError("weights"), "KeyError: 'weights'")],
)
def test_an_engine_that_cannot_be_started_again_ends_all(error: Exception, text: str) -> None:
    class Once(Mortal):
        async def start(self) -> None:
            await super().start()
            if self._log.starts > 1:
                raise error

    log = Log()

    async def ignore(_inside: set[str] | None) -> None: ...

    async def scenario() -> list[object]:
        engine = RestartingEngine(lambda: Once(log, {"row1"}), ignore)
        await engine.start()
        return await asyncio.gather(*(engine.complete(request(f"row{i}")) for i in range(3)), return_exceptions=True)

    made = asyncio.run(scenario())
    assert [str(outcome) for outcome in made] == [text] * 3


def test_an_engine_that_always_dies_is_given_up() -> None:
    rows = [f"row{number}" for number in range(40)]
    _, made = run(rows, set(rows))
    assert any("times in a row" in str(outcome) for outcome in made.values())
