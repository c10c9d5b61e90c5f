"""Rows that were on a dead engine, in blocks of several: one that has nothing left to do holds nobody back. No Ray."""

import asyncio
from pathlib import Path
from typing import Any

from cgd_ray.config.engine import ScriptedOptions
from cgd_ray.config.recipe import parse_recipe
from cgd_ray.engines.chain import ChainRunner
from cgd_ray.engines.scripted import ScriptedEngine
from cgd_ray.engines.stage import TEXTS, Row, row_name
from cgd_ray.engines.ward import RevivedEngine, Strike
from cgd_ray.generation.stages import build_stages
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


def test_a_suspect_without_anything_left_to_do_is_cleared_before_its_block_ends(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "run": {"name": "r", "root": str(tmp_path)},
            "data": {"type": "demo"},
            "student": {"model": "s", "engine": {"type": "scripted"}},
            "teacher": {"engine": {"type": "scripted", "model": "t"}},
        },
        "test",
    )
    stages = build_stages(recipe, Store(str(tmp_path)))
    finished, lacking = row("00aa"), row("00bb", "critique", "refine")

    async def report(_inside: set[str] | None) -> None: ...

    async def scenario() -> None:
        engine = RevivedEngine(lambda: ScriptedEngine(ScriptedOptions(type="scripted")), report)
        await engine.start()
        names = [row_name(finished), row_name(lacking)]
        for name in names:
            engine.strikes.hold(name, Strike(2, 1))
        runner = ChainRunner(
            engine,
            [stages.critique, stages.refine],
            max_in_flight=1,
            flush_rows=1,
            flush_seconds=1,
            on_left=engine.left,
        )
        await asyncio.wait_for(runner.run([finished, lacking], without_slots=names), timeout=10)
        assert not engine.strikes.any_suspect

    asyncio.run(scenario())
    assert len(stages.refine.results.read()) == 1
