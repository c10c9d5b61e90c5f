"""Append-only tables of Parquet parts: `root/tables/STAGE/FINGERPRINT/part-*.parquet`, `table.json` beside them."""

import functools
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cgd_ray.storage.filesystem import Store

# Readers take success over failure. What the same model would truncate or refuse again counts as a success here.
_STATUS_RANK = {"ok": 0, "truncated": 0, "over-long": 0, "failed": 1}


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
        """Write what the fingerprint was made of, once."""
        name = f"{self.folder}/table.json"
        if not self.store.exists(name):
            self.store.write(name, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode())

    def description(self) -> dict[str, Any] | None:
        """What `describe` wrote, or None for a table that nobody has written to."""
        name = f"{self.folder}/table.json"
        if not self.store.exists(name):
            return None
        content: dict[str, Any] = json.loads(self.store.read(name))
        return content

    def write_part(self, part: str, rows: list[dict[str, Any]] | pa.Table) -> None:
        """Commit rows as the part of that name, whole or not at all."""
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=self.schema)
        buffer = io.BytesIO()
        pq.write_table(table.cast(self.schema), buffer, compression="zstd")
        self.store.write(f"{self.folder}/{part}.parquet", buffer.getvalue())

    def parts(self) -> list[str]:
        """Names of the parts, sorted."""
        return self.store.names(self.folder, suffix=".parquet")

    def batches(self) -> Iterator[pa.Table]:
        """The parts one by one, as they were written, with a column `part` added."""
        for part in self.parts():
            table = pq.read_table(io.BytesIO(self.store.read(f"{self.folder}/{part}")), schema=self.schema)
            yield table.append_column("part", pa.array([part] * len(table), pa.string()))

    def read(self) -> pa.Table:
        """All rows, one per key (and parent, where results have one), sorted by key.

        Where it was written more than once, success wins over failure, then the lowest attempt, then the part name.
        """
        tables = list(self.batches())
        if not tables:
            return self.schema.empty_table()
        return _one_per_key(pa.concat_tables(tables), self.schema)


def _one_per_key(table: pa.Table, schema: pa.Schema) -> pa.Table:
    keys = [name for name in ("prompt_id", "sample", "parent") if name in schema.names]
    order = [(name, "ascending") for name in keys]
    if "status" in schema.names:
        ranks = pa.array([_STATUS_RANK[status] for status in table["status"].to_pylist()], pa.int8())
        table = table.append_column("rank", ranks)
        order += [("rank", "ascending"), ("attempt", "ascending")]
    order.append(("part", "ascending"))
    table = table.sort_by(order)
    return table.filter(_first_of_each(table, keys)).select(schema.names)


def _first_of_each(table: pa.Table, keys: list[str]) -> pa.ChunkedArray | pa.Array:
    """A mask of the rows whose key differs from the row above; the table is sorted by key."""
    if len(table) == 0:
        return pa.array([], pa.bool_())
    changed = [pc.not_equal(table[key].slice(1), table[key].slice(0, len(table) - 1)) for key in keys]
    mask = functools.reduce(pc.or_, changed)
    return pa.concat_arrays([pa.array([True]), *pa.chunked_array(mask).chunks])
