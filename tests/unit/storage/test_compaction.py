"""Compaction: fewer parts, the same rows, whoever is killed and whoever else does it at the same time."""

import itertools
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.stages.definitions import Stages
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.rows import Join
from cgd_ray.storage import compaction
from cgd_ray.storage.compaction import FEW_PARTS, _begun, _end_merges, merge_parts
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.lease import Lease
from cgd_ray.storage.schemas import PROMPTS, RESULTS
from cgd_ray.storage.tables import IdRange, Table

PARTS = FEW_PARTS + 6


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    recipe: Recipe = parse_recipe(
        {
            "run": {"name": "r", "root": str(tmp_path)},
            "data": {"type": "demo"},
            "student": {"model": "s", "engine": {"type": "scripted"}},
            "teacher": {"engine": {"type": "scripted", "model": "t"}},
        },
        "test",
    )
    return open_run(recipe, Store(str(tmp_path))).stages


def joined(stages: Stages) -> Join:
    return Join(Table(stages.draft.results.store, "prompts", "f" * 16, PROMPTS), 1, stages.all)


def fill(table: Table, parts: int = PARTS) -> None:
    for number in range(parts):
        ids = [f"{(number * 97 + step) % 256:02x}{number:04x}" for step in range(3)]
        table.write_part(f"part-{1 + number % 3:04d}-a-{number:06d}", [row(identity) for identity in ids])


def row(identity: str) -> dict[str, Any]:
    filled = dict.fromkeys(RESULTS.names)
    return filled | {
        "prompt_id": identity,
        "sample": 0,
        "parent": "p",
        "status": "ok",
        "text": "t",
        "model": "m",
        "attempt": 1,
    }


def test_small_parts_become_one_with_the_same_rows(stages: Stages) -> None:
    table = stages.draft.results
    fill(table)
    before = table.read()
    joined(stages).compacted()
    [part] = table.parts()
    assert part.startswith("part-0003-")  # so that the next attempt is higher than all there were
    assert table.read().equals(before)
    assert table.store.names(f"{table.folder}/.lease") == []


def test_few_parts_and_large_ones_are_left_alone(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    table = stages.draft.results
    fill(table, FEW_PARTS)
    parts = table.parts()
    joined(stages).compacted()
    assert table.parts() == parts
    fill(table)
    monkeypatch.setattr(compaction, "SMALL_BYTES", 100)
    joined(stages).compacted()
    assert len(table.parts()) == PARTS


def test_a_group_ends_where_it_is_large_enough(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    table = stages.draft.results
    fill(table)
    size = max(table.store.sizes(table.folder, ".parquet").values())
    monkeypatch.setattr(compaction, "_GROUP_BYTES", 4 * size)
    before = table.read()
    joined(stages).compacted()
    assert PARTS / 6 < len(table.parts()) < PARTS / 3
    assert table.read().equals(before)


def test_merged_parts_are_no_wider_than_the_prompts_are(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    table = stages.draft.results
    fill(table)
    before = table.read()
    monkeypatch.setattr(compaction, "PART_ROWS", 50)
    joined(stages).compacted()
    ranges = sorted(IdRange.of_part(part) for part in table.parts())
    assert len(ranges) == math.ceil(3 * PARTS / 50)
    assert all(one.last <= other.first for one, other in itertools.pairwise(ranges))
    assert table.read().equals(before)


def test_many_parts_are_few_where_there_are_many_prompts(stages: Stages) -> None:
    table, join = stages.draft.results, joined(stages)
    fill(table)
    for number in range(PARTS):
        join.prompts.write_part(f"part-{number:06d}", PROMPTS.empty_table())
    join.compacted()
    assert len(table.parts()) == PARTS


def test_another_command_s_table_is_left_alone(stages: Stages) -> None:
    table = stages.draft.results
    fill(table)
    theirs = Lease(table.store, table.folder)
    theirs.take(wait=True)
    joined(stages).compacted()
    theirs.give_back()
    assert len(table.parts()) == PARTS


@pytest.mark.parametrize("where", [(Store, "remove_files"), (Table, "write_part")])
def test_who_is_killed_while_merging_loses_and_doubles_nothing(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, where: tuple[type, str]
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    table = stages.draft.results
    fill(table)
    before = table.read()
    with monkeypatch.context() as broken:
        broken.setattr(*where, killed)
        with pytest.raises(KilledError):
            joined(stages).compacted()
    assert len(table.parts()) == PARTS + (where[0] is Store)
    assert table.read().equals(before)
    for claim in table.store.names(f"{table.folder}/.lease"):  # the killed command's
        table.store.remove(f"{table.folder}/.lease/{claim}")
    joined(stages).compacted()
    assert len(table.parts()) == 1
    assert table.read().equals(before)
    assert sum(len(part) for part in table.batches()) == len(before)
    assert table.store.names(f"{table.folder}/.merges") == []


def test_who_lost_the_lease_in_a_merge_and_ends_it_all_the_same_loses_nothing(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = stages.draft.results
    fill(table)
    before = table.read()
    monkeypatch.setattr("cgd_ray.storage.compaction.PART_ROWS", 50)  # a merge of several parts
    write, written = Table.write_part, list[str]()

    def overtaken(self: Table, part: str, rows: object) -> None:
        write(self, part, rows)  # type: ignore[arg-type]
        written.append(part)
        if len(written) == 2:  # another command takes the first one for dead
            _end_merges(table)

    monkeypatch.setattr(Table, "write_part", overtaken)
    joined(stages).compacted()
    assert table.read().equals(before)
    assert _begun(table) == []


def test_parts_that_somebody_else_has_merged_are_no_error(stages: Stages) -> None:
    table = stages.draft.results
    fill(table)
    listed = table.store.sizes(table.folder, ".parquet")
    before = table.read()
    joined(stages).compacted()
    merge_parts(table, listed)
    assert len(table.parts()) == 1
    assert table.read().equals(before)


def test_a_store_that_silently_keeps_everything_doubles_one_group_once(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = stages.draft.results
    fill(table)
    before = table.read()
    monkeypatch.setattr(compaction, "_GROUP_BYTES", 4 * max(table.sizes().values()))
    with monkeypatch.context() as keeping:
        keeping.setattr(Store, "remove_files", lambda *_: None)
        for _ in range(3):
            joined(stages).compacted()
        ended = threading.Event()
        compaction._merge_if_many(table, FEW_PARTS, ended)
    assert len(before) < sum(len(part) for part in table.batches()) < 1.1 * len(before)
    assert table.read().equals(before)
    joined(stages).compacted()
    assert sum(len(part) for part in table.batches()) == len(before)
    assert PARTS / 6 < len(table.parts()) < PARTS / 3
    assert _begun(table) == []
