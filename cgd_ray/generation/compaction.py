"""Small parts of a table merged into large ones: parts of a few seconds each are soon too many to list and open.

A merged part is written before its sources are deleted, and a note before both: whoever is killed in between leaves
rows twice, which readers take once, and the next command reads the note and ends what was begun. Whoever read the
listing before finds the rows in the parts that are there then (`Table.read`).

Nothing is merged while an earlier merge cannot be ended, and one group goes before the others: where the store keeps
what should be deleted, each merge would double its rows.
"""

import contextlib
import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile

import pyarrow as pa
import structlog

from cgd_ray.data.prepare import PART_ROWS
from cgd_ray.engines.join import Join
from cgd_ray.errors import CgdError
from cgd_ray.runtime.spread import spread
from cgd_ray.storage.filesystem import NotDeletedError, store_errors
from cgd_ray.storage.lease import Lease
from cgd_ray.storage.runs import Document
from cgd_ray.storage.tables import IdRange, Table

log = structlog.get_logger(__name__)

SMALL_BYTES = 2**20
"""A part below this is small."""

FEW_PARTS = 64
"""So many small parts are left alone, or eight for each part of the prompts: they cost less than merging would."""

EVERY_SECONDS = 600.0
"""While a run goes on."""

_PER_SHARD = 8
_LAST_SECONDS = 5.0
_MERGED = "merged"  # in a part's name: rows that are merged once are not written again
_GROUP_BYTES = 4 * SMALL_BYTES

_Merge = Callable[[list[str]], Document | None]
_Each = Callable[[_Merge, Sequence[list[str]]], Iterator[Document | None]]


def compact(join: Join) -> None:
    """Merge the small parts of the stages' tables, those aside that another command works on."""
    few = _few(join)
    for stage in join.stages:
        small = _small_parts(stage.results)
        if len(small) <= few and not _begun(stage.results):
            continue
        lease = Lease(stage.results.store, stage.results.folder)
        with contextlib.ExitStack() as stack:
            try:
                lease.take(wait=False)
            except CgdError as held:
                log.info(f"{stage.name}: small parts are not merged: {held}")
                continue
            stack.callback(lease.give_back)
            try:
                _end_merges(stage.results)
                if len(small) > few:
                    merge_parts(stage.results, _small_parts(stage.results))
            except (NotDeletedError, PermissionError) as error:  # the run needs no merging
                log.warning(f"{stage.name}: small parts are not merged: {error}")


@contextlib.contextmanager
def merging(join: Join, tables: Sequence[Table]) -> Iterator[None]:
    """Merge the tables' small parts time and again, beside the block: engines write some thousands a day each.

    Whoever begins a run of days anew would otherwise merge for an hour before the first row. To be used by who holds
    the tables' leases.
    """
    few, ended = _few(join), threading.Event()

    def run() -> None:
        while not ended.wait(EVERY_SECONDS):
            for table in tables:
                _merge_if_many(table, few, ended)

    thread = threading.Thread(target=run, name="merging", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LAST_SECONDS)  # what it leaves half done, the next command ends


def _merge_if_many(table: Table, few: int, ended: threading.Event) -> None:
    """One group after the other, here: nobody waits for it."""
    passing: tuple[type[Exception], ...] = (CgdError, *store_errors())

    def here(merge: _Merge, groups: Sequence[list[str]]) -> Iterator[Document | None]:
        return map(merge, takewhile(lambda _: not ended.is_set(), groups))

    try:
        _end_merges(table)
        small = _small_parts(table)
        if len(small) > few:
            _merge_groups(table, list(_groups(small)), here)
    except passing as error:  # the next time, or by the next command
        log.warning(f"{table.stage}: small parts are not merged: {error}")


def _few(join: Join) -> int:
    return max(FEW_PARTS, _PER_SHARD * len(join.prompts.parts()))


def merge_parts(table: Table, parts: dict[str, int]) -> None:
    """Merge these parts (bytes by name), neighbours by id. To be called by who holds the table's lease."""
    groups = list(_groups(parts))
    merged = _merge_groups(table, groups, spread)
    log.info(f"{table.stage}: merged small parts", parts=merged, into=len(groups), table=table.folder)


def _merge_groups(table: Table, groups: list[list[str]], each: _Each) -> int:
    """Merge groups of parts, the first one alone; returns the number of parts that are no more."""
    merged = 0
    for some in (groups[:1], groups[1:]):
        merges = [merge for merge in each(partial(_merge, table), some) if merge]
        _end(table, merges)
        merged += sum(len(merge["sources"]) for merge in merges)
    return merged


def _small_parts(table: Table) -> dict[str, int]:
    return {part: size for part, size in table.sizes().items() if size < SMALL_BYTES and f"-{_MERGED}" not in part}


def _groups(parts: dict[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for part in sorted(parts, key=IdRange.of_part):
        group.append(part)
        size += parts[part]
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if len(group) > 1:
        yield group


def _merge(table: Table, parts: list[str]) -> Document | None:
    """Write what these parts hold as one, or a few; to be ended."""
    try:
        rows = pa.concat_tables(table.batches(parts)).drop_columns("part")
    except FileNotFoundError:  # merged by somebody who has taken the lease since
        return None
    rows = rows.sort_by("prompt_id")
    writer = f"part-{max(int(part.split('-')[1]) for part in parts):04d}-{_MERGED}{secrets.token_hex(6)}"
    # No wider than a part of the prompts: who works on some of those should not have to read much else.
    slices = [rows.slice(start, PART_ROWS) for start in range(0, len(rows), PART_ROWS)]
    merge = {"writer": writer, "parts": len(slices), "sources": parts}
    table.store.write(f"{_notes(table)}/{writer}.json", json.dumps(merge).encode())
    for number, part in enumerate(slices):
        table.write_part(f"{writer}-{number:06d}", part)
    return merge


def _notes(table: Table) -> str:
    return f"{table.folder}/.merges"


def _begun(table: Table) -> list[str]:
    """Notes of merges that were not ended; who holds the table's lease finds those of killed commands only."""
    return table.store.names(_notes(table))


def _end_merges(table: Table) -> None:
    _end(table, [json.loads(table.store.read(f"{_notes(table)}/{note}")) for note in _begun(table)])


def _end(table: Table, merges: list[Document]) -> None:
    """Delete the sources of merges whose parts are all there.

    Merged parts are never deleted, not even of a merge that seems to be given up: who began it may live, though its
    lease is lost, and delete the sources a moment later. Rows that then stand twice are read once.

    Raises:
        NotDeletedError: sources are still there; so is the note, and the next to merge tries again.
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
