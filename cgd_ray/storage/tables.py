"""Append-only tables of Parquet parts: `root/tables/STAGE/FINGERPRINT/part-*.parquet`, `table.json` beside them.

Work is distributed in the order of prompt ids, so a part holds a narrow range of them. Its name ends in that range.
A listing thus serves as the index, and rows of some prompts are found without opening the other parts.
"""

import bisect
import functools
import io
import json
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cgd_ray.errors import CgdError
from cgd_ray.redaction import redact_tree
from cgd_ray.storage.filesystem import Store

PART_ROWS = 8_192
"""Rows of a part file, about: what is planned, curated and retried as one piece."""

_PART = re.compile(r"part-.+-[^-]*-[^-]*\.parquet")
MERGED = "merged"
"""Marks the name of a part that others were merged into."""
_LIST_RETRIES = 4  # at a listing before a reader gives up
_LISTED_AT_ONCE = (
    256  # files that a store lists at one moment: S3 gives 1,000 in a page, Linux 32 KiB of names in a call
)
ID_DIGITS = 4
"""Of an id, in a part's name: 65,536 ranges. Parts of prompts begin where one of them does, so that they share none."""

# Readers prefer success to failure. Rows that the same model would truncate or refuse again count as successes here.
_DECIDING = ("prompt_id", "sample", "parent", "status", "attempt", "digest")
_STATUS_RANK = {"ok": 0, "truncated": 0, "over-long": 0, "quarantined": 1, "failed": 2}


@dataclass(frozen=True)
class Table:
    """One table of a root. Parts are written whole and never changed, so readers need no lock."""

    store: Store
    stage: str
    fingerprint: str
    schema: pa.Schema

    @property
    def folder(self) -> str:
        """The table's folder, relative to the root."""
        return f"tables/{self.stage}/{self.fingerprint}"

    def describe(self, content: dict[str, Any]) -> None:
        """Write the content that the fingerprint was computed from, once."""
        name = f"{self.folder}/table.json"
        if not self.store.exists(name):
            self.store.write(
                name, json.dumps(redact_tree(content), indent=1, sort_keys=True, ensure_ascii=False).encode()
            )

    def description(self) -> dict[str, Any] | None:
        """The content that `describe` wrote, or None for a table without it.

        Raises:
            CgdError: it is damaged.
        """
        name = f"{self.folder}/table.json"
        if not self.store.exists(name):
            return None
        try:
            content: dict[str, Any] = json.loads(self.store.read(name))
        except ValueError as error:
            raise CgdError(
                f"{self.store.url(name)}: damaged ({error}). Fix: delete it, and it is written again"
            ) from error
        return content

    def write_part(self, part: str, rows: list[dict[str, Any]] | pa.Table) -> None:
        """Commit rows atomically as the part of that name; the range of their ids is appended to the name."""
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=self.schema)
        buffer = io.BytesIO()
        pq.write_table(table.cast(self.schema), buffer, compression="zstd", write_page_checksum=True)
        self.store.write(f"{self.folder}/{part}-{IdRange.of(table)}.parquet", buffer.getvalue())

    def parts(self) -> list[str]:
        """Names of the parts, sorted; one that is being merged into another may be gone when it is read.

        A listing of many parts comes in pages: a merged part may be written to a page that was read before its sources
        are deleted from one that was not. It was written first, so a second listing has it.
        """
        found = self.sizes()
        return sorted(found if len(found) <= _LISTED_AT_ONCE else found | self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of the parts by name, from one listing; other files in the folder are ignored."""
        return {name: size for name, size in self.store.sizes(self.folder).items() if _PART.fullmatch(name)}

    def batches(self, parts: Iterable[str] | None = None, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Parts one by one, as they were written, with a column `part` added; null `parts` takes all.

        Raises:
            FileNotFoundError: a part no longer exists; its rows are in another one.
            CgdError: a part is damaged.
        """
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        names = list(self.parts() if parts is None else parts)
        contents = self.store.read_each([f"{self.folder}/{name}" for name in names])
        for part, content in zip(names, contents, strict=True):
            table = self._decoded(part, content, schema)
            yield table.append_column("part", pa.array([part] * len(table), pa.string()))

    def _decoded(self, part: str, content: bytes, schema: pa.Schema) -> pa.Table:
        name = f"{self.folder}/{part}"
        try:
            return pq.read_table(
                io.BytesIO(content), schema=schema, columns=schema.names, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:  # damaged pages raise OSError
            raise CgdError(
                f"{self.store.url(name)}: damaged ({' '.join(str(error).split())}). "
                "Fix: restore it, or delete it and its "
                "rows are made again"
            ) from error

    def read(self, parts: list[str] | None = None, columns: list[str] | None = None) -> pa.Table:
        """Rows, one per key (and parent, where results have one), sorted by key.

        Of a row that was written more than once, success precedes failure, then the lowest attempt, then the lowest
        digest.

        Args:
            parts: names of parts; none takes all.
            columns: names of columns; the columns that decide between duplicate rows are always read too.

        Raises:
            CgdError: a part is damaged, or is missing and no other part can hold its rows.
        """
        names = self.parts() if parts is None else parts
        deciding = [name for name in _DECIDING if name in self.schema.names]
        wanted = None if columns is None else [*columns, *(name for name in deciding if name not in columns)]
        ids = IdRange.around([IdRange.of_part(name) for name in names])
        for _ in range(_LIST_RETRIES):
            try:
                tables = list(self.batches(names, wanted))
                break
            except FileNotFoundError:  # merged into a larger part since it was listed
                now = self.parts()
                self._require_merged(names, now)
                names = [part for part in now if IdRange.of_part(part).meets(ids)]
        else:
            raise CgdError(
                f"{self.store.url(self.folder)}: its parts change all the time. Fix: wait for the other command that "
                "merges them"
            )
        if not tables:
            return self.schema.empty_table().select(columns or self.schema.names)
        return _one_per_key(pa.concat_tables(tables)).select(columns or self.schema.names)

    def _require_merged(self, names: Sequence[str], now: Sequence[str]) -> None:
        """Check that merged parts can hold the rows of missing ones; the first listing may name merged parts, too."""
        before = set(names)
        new = [IdRange.of_part(name) for name in now if name not in before or MERGED in name]
        for gone in before.difference(now):
            if not any(ids.meets(IdRange.of_part(gone)) for ids in new):
                raise CgdError(
                    f"{self.store.url(f'{self.folder}/{gone}')}: not there on {platform.node()}, nor is a part that it "
                    "was merged into. Fix: let every node see the same run.root, or restore the part"
                )


@dataclass(frozen=True, order=True)
class IdRange:
    """A closed range of prompt ids, by their first hex digits."""

    first: str
    last: str

    @staticmethod
    def of(rows: pa.Table) -> "IdRange":
        """The range that holds all the rows."""
        ends = pc.min_max(rows["prompt_id"]).as_py()
        return IdRange.between(ends["min"] or "", ends["max"] or "")

    @staticmethod
    def between(first: str, last: str) -> "IdRange":
        """The range from one id to another."""
        return IdRange(first[:ID_DIGITS], last[:ID_DIGITS])

    @staticmethod
    def around(ranges: "list[IdRange]") -> "IdRange":
        """The smallest range that holds all of them."""
        return IdRange(min((ids.first for ids in ranges), default=""), max((ids.last for ids in ranges), default=""))

    @staticmethod
    def of_part(name: str) -> "IdRange":
        """The range in a part's name."""
        return IdRange(*name.removesuffix(".parquet").split("-")[-2:])

    def meets(self, other: "IdRange") -> bool:
        """Whether an id may be in both."""
        return self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def next_attempt(parts: Sequence[str]) -> int:
    """Number of the attempt after those that wrote these parts (part-ATTEMPT-WRITER-SEQUENCE-FIRST-LAST.parquet)."""
    return 1 + max((int(name.split("-")[1]) for name in parts), default=0)


def shard_of(borders: Sequence[str], prompt_id: str) -> int:
    """Index of the shard between the borders that holds an id; each border is the first id of a part of the prompts."""
    return bisect.bisect_right(borders, prompt_id)


def _one_per_key(table: pa.Table) -> pa.Table:
    names = [name for name in table.schema.names if name != "part"]
    keys = [name for name in ("prompt_id", "sample", "parent") if name in names]
    order = [(name, "ascending") for name in keys]
    if "status" in names:
        ranks = pa.array([_STATUS_RANK[status] for status in table["status"].to_pylist()], pa.int8())
        table = table.append_column("rank", ranks)
        order += [("rank", "ascending"), ("attempt", "ascending")]
    if "digest" in names:  # before the part, whose name changes when it is merged
        order.append(("digest", "ascending"))
    order.append(("part", "ascending"))
    table = table.sort_by(order)
    return table.filter(_first_of_each(table, keys)).select(names)


def _first_of_each(table: pa.Table, keys: list[str]) -> pa.ChunkedArray | pa.Array:
    """A mask of the rows whose key differs from the row above; the table is sorted by key."""
    if len(table) == 0:
        return pa.array([], pa.bool_())
    changed = [pc.not_equal(table[key].slice(1), table[key].slice(0, len(table) - 1)) for key in keys]
    mask = functools.reduce(pc.or_, changed)
    return pa.concat_arrays([pa.array([True]), *pa.chunked_array(mask).chunks])
