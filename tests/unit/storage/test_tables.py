"""Tables: what readers see after retries, torn writes and several writers."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cgd_ray.errors import CgdError
from cgd_ray.storage.commit import Committer
from cgd_ray.storage.filesystem import Store, require_writable
from cgd_ray.storage.fingerprint import derived_seed, fingerprint, parent_digest, text_digest
from cgd_ray.storage.schemas import RESULTS
from cgd_ray.storage.tables import IdRange, Table


def result(prompt: str, status: str, attempt: int, text: str | None = None, sample: int = 0) -> dict[str, Any]:
    return {
        "prompt_id": prompt,
        "sample": sample,
        "parent": "p",
        "digest": text,
        "status": status,
        "text": text,
        "finish_reason": None,
        "verdict": None,
        "error": None,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "model": "m",
        "attempt": attempt,
    }


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(Store(str(tmp_path)), "draft", "f" * 16, RESULTS)


def test_success_beats_failure_then_the_lowest_attempt_wins_then_the_part_name(table: Table) -> None:
    table.write_part("part-0001-b-000000", [result("a", "failed", 1), result("b", "ok", 1, "b1")])
    table.write_part("part-0002-a-000000", [result("a", "ok", 2, "a2"), result("b", "ok", 2, "b2")])
    table.write_part(
        "part-0002-c-000000", [result("a", "ok", 2, "a2, later part"), result("a", "ok", 3, "a3", sample=1)]
    )
    rows = [(row["prompt_id"], row["sample"], row["text"]) for row in table.read().to_pylist()]
    assert rows == [("a", 0, "a2"), ("a", 1, "a3"), ("b", 0, "b1")]


def test_a_truncated_result_is_not_beaten_by_a_later_attempt(table: Table) -> None:
    table.write_part("part-0001-a-000000", [result("a", "truncated", 1, "long")])
    table.write_part("part-0002-a-000000", [result("a", "ok", 2, "other")])
    assert table.read()["text"].to_pylist() == ["long"]


def test_an_empty_table_has_the_schema(table: Table) -> None:
    assert table.read().schema == RESULTS
    assert table.description() is None


def test_unfinished_writes_are_not_parts(table: Table, tmp_path: Path) -> None:
    table.write_part("part-0001-a-000000", [result("a", "ok", 1, "x")])
    (tmp_path / table.folder / ".part-0001-b-000000.parquet.12ab.tmp").write_bytes(b"half a part")
    assert table.parts() == ["part-0001-a-000000-a-a.parquet"]
    assert len(table.read()) == 1


@pytest.mark.parametrize("name", ["backup.parquet", "copy-of-part-0001-a-000000-a-a.parquet", "part-1.parquet"])
def test_files_that_somebody_left_beside_the_parts_are_no_parts(table: Table, tmp_path: Path, name: str) -> None:
    table.write_part("part-0001-a-000000", [result("a", "ok", 1, "x")])
    (tmp_path / table.folder / name).write_bytes(b"not ours")
    assert len(table.read()) == 1


def test_a_damaged_description_is_named(table: Table, tmp_path: Path) -> None:
    table.describe({"model": "m"})
    (tmp_path / table.folder / "table.json").write_bytes(b"")
    with pytest.raises(CgdError, match=r"table.json: damaged .*. Fix: delete it"):
        table.description()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    store = Store(str(tmp_path))
    with pytest.raises(OSError, match="No space"):
        store.write("folder/file", b"content")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_root_that_cannot_be_written_is_named() -> None:
    with pytest.raises(CgdError, match=r"run\.root /proc/nowhere: cannot be written") as caught:
        require_writable(Store("/proc/nowhere"))
    assert "\n" not in str(caught.value)


def test_digests_depend_on_every_text_and_its_place() -> None:
    def parent(*texts: str) -> str:
        return parent_digest(*map(text_digest, texts))

    assert parent("ab", "c") != parent("a", "bc") != parent("bc", "a")
    assert parent("a", "") != parent("a")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert derived_seed(1, "draft", "p", 2) != derived_seed(1, "draft", "p", 3)
    assert derived_seed(1, "x", 12) != derived_seed(1, "x1", 2)


def test_rows_are_committed_when_enough_wait_and_on_flush(table: Table) -> None:
    async def scenario() -> list[int]:
        committer = Committer(table, attempt=1, flush_rows=2, flush_seconds=60)
        first = [committer.add(result(name, "ok", 1, name)) for name in "ab"]
        await asyncio.gather(*first)
        after_two = len(table.read())
        third = committer.add(result("c", "ok", 1, "c"))
        await asyncio.sleep(0.05)
        waiting = len(table.read())
        committer.flush()
        await third
        await committer.close()
        return [after_two, waiting, len(table.read())]

    assert asyncio.run(scenario()) == [2, 2, 3]


def test_a_row_waits_no_longer_than_the_flush_time(table: Table) -> None:
    async def scenario() -> None:
        committer = Committer(table, attempt=1, flush_rows=1000, flush_seconds=0.05)
        await asyncio.wait_for(committer.add(result("a", "ok", 1, "a")), timeout=5)

    asyncio.run(scenario())
    assert len(table.read()) == 1


def test_no_part_holds_rows_of_two_shards(table: Table) -> None:
    async def scenario() -> list[list[str]]:
        committer = Committer(table, attempt=1, flush_rows=3, flush_seconds=0.2, borders=("4000", "8000"))
        names = ["0001", "4000", "8001", "0002", "7fff", "0003"]  # three shards; only the first has enough rows
        rows = [committer.add(result(name, "ok", 1, name)) for name in names]
        await asyncio.gather(rows[0], rows[3], rows[5])
        assert [rows[number].done() for number in (1, 2, 4)] == [False] * 3
        await asyncio.wait_for(asyncio.gather(*rows), timeout=5)
        assert committer.waiting == 0
        return [part["prompt_id"].to_pylist() for part in table.batches()]

    assert sorted(asyncio.run(scenario())) == [["0001", "0002", "0003"], ["4000", "7fff"], ["8001"]]


def test_what_a_row_was_made_from_is_on_storage_before_the_row(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = Table.write_part

    def slow_critiques(self: Table, part: str, rows: list[dict[str, Any]]) -> None:
        time.sleep(0.1 if self.stage == "draft" else 0)
        write(self, part, rows)
        written.append(self.stage)

    async def scenario() -> None:
        first = Committer(table, attempt=1, flush_rows=10, flush_seconds=60)
        second = Committer(replace(table, stage="refine"), attempt=1, flush_rows=1, flush_seconds=60, after=first)
        first.add(result("a", "ok", 1, "a"))
        await second.add(result("a", "ok", 1, "made of it"))

    monkeypatch.setattr(Table, "write_part", slow_critiques)
    asyncio.run(scenario())
    assert written == ["draft", "refine"]


def test_a_row_whose_input_could_not_be_stored_is_not_stored(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Table.write_part

    def no_drafts(self: Table, part: str, rows: list[dict[str, Any]]) -> None:
        if self.stage == "draft":
            raise OSError("disk full")
        write(self, part, rows)

    async def scenario() -> list[Any]:
        first = Committer(table, attempt=1, flush_rows=10, flush_seconds=60)
        second = Committer(replace(table, stage="refine"), attempt=1, flush_rows=1, flush_seconds=60, after=first)
        both = first.add(result("a", "ok", 1, "a")), second.add(result("a", "ok", 1, "made of it"))
        return await asyncio.gather(*both, return_exceptions=True)

    monkeypatch.setattr(Table, "write_part", no_drafts)
    assert [str(error) for error in asyncio.run(scenario())] == ["disk full"] * 2
    assert replace(table, stage="refine").parts() == []


def test_a_coroutine_learns_that_its_row_could_not_be_stored(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Store, _name: str, _content: bytes) -> None:
        raise OSError("disk full")

    async def scenario() -> None:
        committer = Committer(table, attempt=1, flush_rows=1, flush_seconds=60)
        await committer.add(result("a", "ok", 1, "a"))

    monkeypatch.setattr(Store, "write", refuse)
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(scenario())


def test_rows_of_a_range_are_found_by_the_names_of_the_parts(table: Table) -> None:
    low, high, wide = ["00ff1", "01000"], ["ff001"], ["00001", "fffff"]
    for number, ids in enumerate((low, high, wide)):
        table.write_part(f"part-0001-a-{number:06d}", [result(identity, "ok", 1, "x") for identity in ids])
    ranges = [IdRange.of_part(name) for name in table.parts()]
    assert [(held.first, held.last) for held in ranges] == [("00ff", "0100"), ("ff00", "ff00"), ("0000", "ffff")]
    asked = IdRange("0100", "0100")
    chosen = [name for name in table.parts() if IdRange.of_part(name).meets(asked)]
    assert table.read(chosen)["prompt_id"].to_pylist() == ["00001", "00ff1", "01000", "fffff"]


def test_rows_of_parts_that_were_merged_since_the_listing_are_found(table: Table) -> None:
    for number, identity in enumerate(["0000a", "8000b", "f000c"]):
        table.write_part(f"part-0001-a-{number:06d}", [result(identity, "ok", 1, identity)])
    listed = table.parts()
    rows = pa.concat_tables(table.batches()).drop_columns("part")
    table.write_part("part-0001-b-000000", rows)
    table.store.remove_files([f"{table.folder}/{part}" for part in listed])
    assert table.read(listed)["text"].to_pylist() == ["0000a", "8000b", "f000c"]


def test_a_listing_that_was_made_during_a_merge_is_no_loss(table: Table) -> None:
    for number, identity in enumerate(["0000a", "8000b"]):
        table.write_part(f"part-0001-a-{number:06d}", [result(identity, "ok", 1, identity)])
    sources = table.parts()
    table.write_part("part-0001-merged0-000000", pa.concat_tables(table.batches()).drop_columns("part"))
    listed = table.parts()
    table.store.remove_files([f"{table.folder}/{part}" for part in sources])
    assert table.read(listed)["text"].to_pylist() == ["0000a", "8000b"]


def test_a_part_that_is_gone_and_was_not_merged_is_named(table: Table) -> None:
    for number, identity in enumerate(["0000a", "8000b"]):
        table.write_part(f"part-0001-a-{number:06d}", [result(identity, "ok", 1, identity)])
    [lost, _] = listed = table.parts()
    table.store.remove(f"{table.folder}/{lost}")
    with pytest.raises(CgdError, match=rf"{lost}: not there on \S+, nor is a part that it was merged into"):
        table.read(listed)
    assert len(table.read()) == 1


def test_a_damaged_part_is_named(table: Table) -> None:
    table.write_part("part-0001-a-000000", [result("a", "ok", 1, "a")])
    [part] = table.parts()
    table.store.write(f"{table.folder}/{part}", b"")
    with pytest.raises(CgdError, match=rf"{part}: damaged .* delete it and its rows are made again"):
        table.read()


def test_columns_can_be_read_without_the_texts(table: Table) -> None:
    table.write_part("part-0001-a-000000", [result("a", "failed", 1)])
    table.write_part("part-0002-a-000000", [result("a", "ok", 2, "text")])
    columns = ["prompt_id", "sample", "parent", "status", "attempt"]
    rows = table.read(columns=columns)
    assert rows.schema.names == columns
    assert rows["status"].to_pylist() == ["ok"]
