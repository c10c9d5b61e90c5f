"""A shard's join reads the rows of the shard and few others, though each engine works on many shards at a time."""

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from cgd_ray.data.external_sort import SortedRows
from cgd_ray.execution.chain_runner import ChainRunner
from cgd_ray.generation.planning import plan, with_attempts, work
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.rows import Join
from cgd_ray.stages.stage import Stage
from cgd_ray.storage.compaction import merge_parts
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import PROMPTS
from cgd_ray.storage.tables import Table
from tests.unit.generation.test_planning import prompts, recipe

ROWS, SHARD_ROWS, ENGINES, BLOCK_ROWS = 4000, 250, 8, 25


@pytest.fixture
def join(tmp_path: Path) -> Join:
    """Prompts in shards, whose drafts engines make that are given blocks of all shards in turn."""
    store = Store(str(tmp_path))
    table = Table(store, "prompts", "f" * 16, PROMPTS)
    with SortedRows(PROMPTS) as ordered:
        ordered.add(prompts(ROWS).to_pylist())
        for number, part in enumerate(ordered.parts(SHARD_ROWS)):
            table.write_part(f"part-{number:06d}", part)
    return Join(table, 1, open_run(recipe(tmp_path), store).stages.all)


def draft_all(join: Join) -> Stage:
    """All drafts, by engines that are given each a block in turn and write when each has had four."""
    [draft] = with_attempts(join.stages[:1], join.listed())
    rows = [row for shard in join.shards() for block in work(join, shard, {"draft"}) for row in block.to_pylist()]
    blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]

    async def engine(number: int) -> None:
        runner = ChainRunner(
            ScriptedEngine(ScriptedOptions(type="scripted")),
            [draft],
            max_in_flight=1000,
            flush_rows=10 * BLOCK_ROWS,
            flush_seconds=60,
        )
        ours = blocks[number::ENGINES]
        for start in range(0, len(ours), 4):
            await runner.run([row for block in ours[start : start + 4] for row in block])
        await runner.close()

    async def all_engines() -> None:
        await asyncio.gather(*map(engine, range(ENGINES)))

    asyncio.run(all_engines())
    return draft


def rows_read(join: Join, monkeypatch: pytest.MonkeyPatch) -> float:
    """Rows of drafts that a plan reads, for each draft."""
    decoded, rows = Table._decoded, list[int]()

    def counting(self: Table, part: str, content: bytes, schema: pa.Schema) -> pa.Table:
        found = decoded(self, part, content, schema)
        rows.append(len(found) if self.stage == "draft" else 0)
        return found

    with monkeypatch.context() as counted:
        counted.setattr(Table, "_decoded", counting)
        assert plan(join).counts["draft"].ok == ROWS
    return sum(rows) / ROWS


def test_a_plan_reads_each_row_once_before_and_after_merging(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = draft_all(join)
    parts = draft.results.sizes()
    assert len(parts) > 2 * ROWS / SHARD_ROWS
    assert rows_read(join, monkeypatch) == 1
    merge_parts(draft.results, parts, join.borders)
    assert len(draft.results.parts()) == ROWS / SHARD_ROWS
    assert rows_read(join, monkeypatch) == 1
