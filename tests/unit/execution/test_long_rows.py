"""Long rows do not hold short ones: an engine's places are taken though some rows take ten times as long as most."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cgd_ray.config.recipe import parse_recipe
from cgd_ray.execution.actor_pool import Chain, block_rows
from cgd_ray.execution.chain_runner import ChainRunner
from cgd_ray.inference.base import Completion, Request
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.stage import TEXTS, Row
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.tables import Table

ROUNDS = 100


class FastLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer when nothing is ready: hours of latency in a second."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Uneven(ScriptedEngine):
    """Answers take a second at the median, 10 for one in a hundred; adds up how many it has at a time."""

    def __init__(self) -> None:
        super().__init__(ScriptedOptions(type="scripted"))
        self._chance = random.Random(0)
        self.seconds = 0.0

    async def complete(self, request: Request) -> Completion:
        seconds = math.exp(self._chance.gauss(0, 1))
        self.seconds += seconds
        await asyncio.sleep(seconds)
        return await super().complete(request)


def chain_of(tmp_path: Path, in_flight: int) -> Chain:
    recipe = parse_recipe(
        {
            "run": {"name": "r", "root": str(tmp_path)},
            "data": {"type": "demo"},
            "student": {"model": "s", "engine": {"type": "scripted"}},
            "teacher": {"engine": {"type": "scripted", "model": "t"}},
        },
        "test",
    )
    stages = open_run(recipe, Store(str(tmp_path))).stages
    return Chain("student", Uneven, [stages.draft], replicas=1, max_in_flight=in_flight, cpus=1, gpus=0)


async def feed(rows: int, chain: Chain, take: Callable[[list[Row]], Awaitable[object]]) -> None:
    """Blocks of the chain's size, as many at a time as Ray Data gives an actor."""
    calls = asyncio.Semaphore(math.ceil(chain.admitted_rows / chain.block_rows))

    async def one(start: int) -> None:
        async with calls:
            await take([row(number) for number in range(start, min(rows, start + chain.block_rows))])

    await asyncio.gather(*(one(start) for start in range(0, rows, chain.block_rows)))


async def at_once(function: Callable[..., object], *arguments: object) -> object:
    return function(*arguments)


def row(number: int) -> Row:
    texts = dict.fromkeys(TEXTS)
    return {**texts, "prompt_id": f"{number:032x}", "sample": 0, "prompt": "x", "reference": "", "todo": ["draft"]}


def test_several_engines_share_few_rows(tmp_path: Path) -> None:
    chain = replace(chain_of(tmp_path, 64), replicas=8, rows=400)
    assert chain.admitted_rows == 64
    assert replace(chain, rows=1600).admitted_rows == 100
    assert replace(chain, rows=10**6).admitted_rows == 512 == replace(chain, rows=None).admitted_rows


def test_few_rows_come_in_small_blocks_unless_another_engine_has_many(tmp_path: Path) -> None:
    few = replace(chain_of(tmp_path, 64), rows=64)
    assert block_rows([few]) == 2
    assert block_rows([few, replace(few, rows=10**6)]) == 8
    assert block_rows([replace(few, rows=10**6, replicas=64)]) == 24
    assert block_rows([replace(few, rows=None)]) == 8


@pytest.mark.parametrize("in_flight", [8, 64, 256, 512])
def test_an_engine_is_full_though_some_rows_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    monkeypatch.setattr(Table, "write_part", lambda *_: None)
    monkeypatch.setattr("asyncio.to_thread", at_once)  # a real thread's milliseconds would be hours of this clock
    chain, engine = chain_of(tmp_path, in_flight), Uneven()
    loop = FastLoop()

    async def run() -> float:
        runner = ChainRunner(
            engine,
            chain.stages,
            max_in_flight=in_flight,
            flush_rows=chain.flush_rows,
            flush_seconds=chain.flush_seconds,
            spare_rows=chain.spare_rows,
        )
        await feed(ROUNDS * in_flight, chain, runner.run)
        return loop.time()

    seconds = loop.run_until_complete(run())
    loop.close()
    places = engine.seconds / seconds
    assert places > 0.8 * in_flight  # the last rows, alone at the end, are among it
