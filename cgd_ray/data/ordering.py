"""Any number of rows, sorted by prompt id in little memory: sorted runs on local disk, read back a range at a time."""

import bisect
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

_ID_BITS = 128


class SortedRows:
    """Takes rows in any order and gives them back as parts, each holding a range of ids. A context manager."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._folder = tempfile.TemporaryDirectory(prefix="cgd-ray-sort-")
        self._runs: list[pa.Table] = []
        self._count = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Take rows; each call makes one sorted run."""
        run = pa.Table.from_pylist(rows, schema=self._schema).sort_by("prompt_id")
        path = Path(self._folder.name) / f"run-{len(self._runs):06d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, self._schema) as writer:
            writer.write_table(run)
        self._runs.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
        self._count += len(rows)

    def parts(self, size: int) -> Iterator[pa.Table]:
        """The rows by id, cut at equal steps of the id's range into parts of about `size` rows; ids are hashes."""
        number = max(1, math.ceil(self._count / size))
        cuts = [f"{(part << _ID_BITS) // number:032x}" for part in range(1, number)]
        starts = [0] * len(self._runs)
        for cut in [*cuts, None]:
            ends = [len(run) if cut is None else _first_not_below(run, cut) for run in self._runs]
            pieces = [run.slice(a, b - a) for run, a, b in zip(self._runs, starts, ends, strict=True)]
            part = pa.concat_tables(pieces).sort_by("prompt_id")
            if len(part):
                yield part
            starts = ends

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runs.clear()
        self._folder.cleanup()


def _first_not_below(run: pa.Table, cut: str) -> int:
    ids = run["prompt_id"]
    return bisect.bisect_left(range(len(ids)), cut, key=lambda place: ids[place].as_py())
