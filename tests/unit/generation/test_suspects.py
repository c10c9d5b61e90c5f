"""Rows that were on a dead engine, in blocks of several: one that has nothing left to do holds nobody back. No Ray."""

import asyncio
from pathlib import Path
from typing import Any

from cgd_ray.config.recipe import parse_recipe
from cgd_ray.execution.chain_runner import ChainRunner
from cgd_ray.execution.quarantine import Suspicion
from cgd_ray.execution.supervisor import RestartingEngine
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.stages.definitions import Stages
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.stage import TEXTS, Row, row_name
from cgd_ray.storage.filesystem import Store


def row(name: str, *todo: str) -> Row:
    texts: dict[str, Any] = dict.fromkeys(TEXTS)
    return texts | {
        "prompt_id": name,
        "sample": 0,
        "prompt": f"What is {name}?",
        "reference": None,
        "draft": "4",
        "todo": list(todo),
    }


def stages_of(root: Path) -> Stages:
    recipe = parse_recipe(
        {
            "run": {"name": "r", "root": str(root)},
            "data": {"type": "demo"},
            "student": {"model": "s", "engine": {"type": "scripted"}},
            "teacher": {"engine": {"type": "scripted", "model": "t"}},
        },
        "test",
    )
    return open_run(recipe, Store(str(root))).stages


def test_a_suspect_without_anything_left_to_do_is_cleared_before_its_block_ends(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    finished, lacking = row("00aa"), row("00bb", "critique", "refine")

    async def report(_inside: set[str] | None) -> None: ...

    async def scenario() -> None:
        engine = RestartingEngine(lambda: ScriptedEngine(ScriptedOptions(type="scripted")), report)
        await engine.start()
        names = [row_name(finished), row_name(lacking)]
        for name in names:
            engine.suspicions.hold(name, Suspicion(2, 1))
        runner = ChainRunner(
            engine,
            [stages.critique, stages.refine],
            max_in_flight=1,
            flush_rows=1,
            flush_seconds=1,
            on_left=engine.left,
        )
        await asyncio.wait_for(runner.run([finished, lacking], without_slots=names), timeout=10)
        assert not engine.suspicions.any_suspect

    asyncio.run(scenario())
    assert len(stages.refine.results.read()) == 1


def test_a_row_that_only_passes_by_does_not_wait_for_those_that_generate(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)

    async def scenario() -> None:
        engine = ScriptedEngine(ScriptedOptions(type="scripted", latency_ms=60_000))
        runner = ChainRunner(engine, [stages.draft], max_in_flight=1, flush_rows=1, flush_seconds=1)
        slow = asyncio.create_task(runner.run([row("00aa", "draft")]))
        await asyncio.sleep(0)
        await asyncio.wait_for(runner.run([row("00bb", "critique")]), timeout=10)
        assert not slow.done()
        slow.cancel()

    asyncio.run(scenario())
