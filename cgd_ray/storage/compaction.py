"""Merge small parts of a table into large ones: parts of a few seconds each are soon too many to list and open.

A merged part is written before its sources are deleted, and a note before both. A command killed in between leaves
rows stored twice. Readers take such rows once, and the next command reads the note and completes the merge. A reader
with an older listing finds the rows in the parts that exist by then (`Table.read`).

Nothing is merged while an earlier merge cannot be completed, and one group is merged before the others: if the store
does not delete the sources, each merge would double its rows.
"""

import contextlib
import itertools
import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pyarrow as pa
import structlog

from cgd_ray.errors import CgdError
from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.storage.filesystem import NotDeletedError, store_errors
from cgd_ray.storage.lease import Lease
from cgd_ray.storage.runs import JsonDict
from cgd_ray.storage.tables import MERGED, PART_ROWS, IdRange, Table, shard_of

log = structlog.get_logger(__name__)

SMALL_BYTES = 2**20
"""A part below this is small."""

FEW_PARTS = 64
"""Most small parts that are not merged, or eight per part of the prompts if that is more: merging costs more."""

EVERY_SECONDS = 600.0
"""Seconds between two merges during a run."""

_PER_SHARD = 8
_LAST_SECONDS = 5.0
_GROUP_BYTES = 16 * SMALL_BYTES

_Merge = Callable[[list[str]], JsonDict | None]
_Each = Callable[[_Merge, Sequence[list[str]]], Iterator[JsonDict | None]]


def compact(table: Table, parts: Sequence[str], borders: Sequence[str]) -> bool:
    """Merge a table's small parts, unless another command works on it. Returns whether anything may have changed.

    Args:
        table: the table to check.
        parts: its current parts.
        borders: ids at which the parts of the prompts begin (`shard_of`).
    """
    few = _few(borders)
    is_many = sum(map(_is_unmerged, parts)) > few and len(_small_parts(table)) > few
    if not is_many and not _begun(table):
        return False
    lease = Lease(table.store, table.folder)
    try:
        lease.take(wait=False)
    except CgdError as held:
        log.info(f"{table.stage}: small parts are not merged: {held}")
        return False
    try:
        _end_merges(table)
        if is_many:
            merge_parts(table, _small_parts(table), borders)
    except (NotDeletedError, PermissionError) as error:  # the run works without merging
        log.warning(f"{table.stage}: small parts are not merged: {error}")
    finally:
        lease.give_back()
    return True


@contextlib.contextmanager
def merging(tables: Sequence[Table], borders: Sequence[str]) -> Iterator[None]:
    """Merge the tables' small parts periodically while the block runs: each engine writes some thousands a day.

    Otherwise a command that resumes a run of days would merge for an hour before its first row. The caller must hold
    the tables' leases.
    """
    few, ended = _few(borders), threading.Event()

    def run() -> None:
        while not ended.wait(EVERY_SECONDS):
            for table in tables:
                _merge_if_many(table, few, ended, borders)

    thread = threading.Thread(target=run, name="merging", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LAST_SECONDS)  # the next command completes an unfinished merge


def _merge_if_many(table: Table, few: int, ended: threading.Event, borders: Sequence[str] = ()) -> None:
    """Merge one group after the other in this process, since no command waits for the result."""
    passing: tuple[type[Exception], ...] = (CgdError, *store_errors())

    def here(merge: _Merge, groups: Sequence[list[str]]) -> Iterator[JsonDict | None]:
        return map(merge, itertools.takewhile(lambda _: not ended.is_set(), groups))

    try:
        _end_merges(table)
        small = _small_parts(table)
        if len(small) > few:
            _merge_groups(table, small, borders, here)
    except passing as error:  # tried again at the next merge, or by the next command
        log.warning(f"{table.stage}: small parts are not merged: {error}")


def _few(borders: Sequence[str]) -> int:
    return max(FEW_PARTS, _PER_SHARD * (len(borders) + 1))


def merge_parts(table: Table, parts: dict[str, int], borders: Sequence[str] = ()) -> None:
    """Merge these parts (bytes by name), those of a shard together. The caller must hold the table's lease."""
    merged = _merge_groups(table, parts, borders, parallel_map)
    log.info(f"{table.stage}: merged small parts", parts=merged, table=table.folder)


def _merge_groups(table: Table, parts: dict[str, int], borders: Sequence[str], each: _Each) -> int:
    """Merge groups of these parts, the first one alone; returns the number of parts that were merged."""
    groups, merged = list(_groups(parts, borders)), 0
    for some in (groups[:1], groups[1:]):
        merges = [merge for merge in each(partial(_merge, table, borders), some) if merge]
        _end(table, merges)
        merged += sum(len(merge["sources"]) for merge in merges)
    return merged


def _small_parts(table: Table) -> dict[str, int]:
    return {part: size for part, size in table.sizes().items() if size < SMALL_BYTES and _is_unmerged(part)}


def _is_unmerged(part: str) -> bool:
    return f"-{MERGED}" not in part


def _groups(parts: dict[str, int], borders: Sequence[str]) -> Iterator[list[str]]:
    """Groups of parts to merge: parts that begin in one shard, up to `_GROUP_BYTES` a group."""
    ordered = sorted(parts, key=IdRange.of_part)
    for _, ours in itertools.groupby(ordered, lambda part: shard_of(borders, IdRange.of_part(part).first)):
        group, size = list[str](), 0
        for part in ours:
            group.append(part)
            size += parts[part]
            if size >= _GROUP_BYTES:
                yield group
                group, size = [], 0
        if len(group) > 1:
            yield group


def _split(rows: pa.Table, borders: Sequence[str]) -> Iterator[pa.Table]:
    """Cut rows, ordered by id, at the borders: work on one shard then reads no other shard."""
    shards = [shard_of(borders, identity) for identity in rows["prompt_id"].to_pylist()]
    start = 0
    for _, ours in itertools.groupby(shards):
        length = len(list(ours))
        for offset in range(0, length, PART_ROWS):
            yield rows.slice(start + offset, min(PART_ROWS, length - offset))
        start += length


def _merge(table: Table, borders: Sequence[str], parts: list[str]) -> JsonDict | None:
    """Write the rows of these parts as one part, or a few; `_end` completes the merge."""
    try:
        rows = pa.concat_tables(table.batches(parts)).drop_columns("part")
    except FileNotFoundError:  # merged by a command that has taken the lease since
        return None
    rows = rows.sort_by("prompt_id")
    writer = f"part-{max(int(part.split('-')[1]) for part in parts):04d}-{MERGED}{secrets.token_hex(6)}"
    slices = list(_split(rows, borders))
    merge = {"writer": writer, "parts": len(slices), "sources": parts}
    table.store.write(f"{_notes(table)}/{writer}.json", json.dumps(merge).encode())
    for number, part in enumerate(slices):
        table.write_part(f"{writer}-{number:06d}", part)
    return merge


def _notes(table: Table) -> str:
    return f"{table.folder}/.merges"


def _begun(table: Table) -> list[str]:
    """Names of notes of incomplete merges; for the holder of the table's lease, these are of killed commands only."""
    return table.store.names(_notes(table))


def _end_merges(table: Table) -> None:
    _end(table, [json.loads(table.store.read(f"{_notes(table)}/{note}")) for note in _begun(table)])


def _end(table: Table, merges: list[JsonDict]) -> None:
    """Delete the sources of merges whose parts are all written.

    Merged parts are never deleted, not even of a merge that seems abandoned. The command that began it may still run
    without its lease, and delete the sources a moment later. Rows that are then stored twice are read once.

    Raises:
        NotDeletedError: sources still exist. The note stays too, and the next merge tries again.
    """
    if not merges:
        return
    there = table.parts()
    written = Counter("-".join(part.split("-")[:3]) for part in there)
    whole = [merge for merge in merges if written[merge["writer"]] == merge["parts"]]
    sources = {part for merge in whole for part in merge["sources"]}.intersection(there)
    table.store.remove_files([f"{table.folder}/{part}" for part in sorted(sources)])
    if kept := sources & table.sizes().keys():
        raise NotDeletedError(f"{table.store.url(table.folder)}: {len(kept)} merged parts are not deleted")
    for merge in merges:
        table.store.remove(f"{_notes(table)}/{merge['writer']}.json")
