"""Sort any number of rows by prompt id in little memory: sorted runs on local disk, merged a range at a time."""

import bisect
import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from cgd_ray.storage.tables import ID_DIGITS

_BATCH_ROWS = 512  # rows of each run in memory: ten million prompts make two hundred runs


class SortedRows:
    """Takes rows in any order and returns them as parts, each with a range of ids. A context manager."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._folder = tempfile.TemporaryDirectory(prefix="cgd-ray-sort-")
        self._runs: list[Path] = []
        self._count = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Take rows; each call makes one sorted run."""
        run = pa.Table.from_pylist(rows, schema=self._schema).sort_by("prompt_id")
        path = Path(self._folder.name) / f"run-{len(self._runs):06d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, self._schema) as writer:
            writer.write_table(run, max_chunksize=_BATCH_ROWS)
        self._runs.append(path)
        self._count += len(rows)

    def parts(self, size: int) -> Iterator[pa.Table]:
        """The rows by id, cut at equal steps of the id's range into parts of about `size` rows; ids are hashes.

        Cuts only where the digits in the names of parts change: parts that share these digits are always read together.
        """
        number = max(1, math.ceil(self._count / size))
        cuts = [f"{16**ID_DIGITS * part // number:0{ID_DIGITS}x}" for part in range(1, number)]
        with contextlib.ExitStack() as files:
            runs = [_Run(files.enter_context(pa.OSFile(str(path), "rb"))) for path in self._runs]
            for cut in [*cuts, None]:
                pieces = [piece for run in runs for piece in run.until(cut)]
                if pieces:
                    yield pa.Table.from_batches(pieces).sort_by("prompt_id")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()


class _Run:
    """A sorted run on disk, read forward, one batch in memory."""

    def __init__(self, file: pa.NativeFile) -> None:
        reader = pa.ipc.open_file(file)
        self._batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        self._rest: pa.RecordBatch | None = next(self._batches, None)

    def until(self, cut: str | None) -> Iterator[pa.RecordBatch]:
        """The next rows, up to the first id that is not below the cut; all remaining rows if `cut` is None."""
        while self._rest is not None:
            end = len(self._rest) if cut is None else _first_not_below(self._rest, cut)
            if end:
                yield self._rest.slice(0, end)
            if end < len(self._rest):
                self._rest = self._rest.slice(end)
                return
            self._rest = next(self._batches, None)


def _first_not_below(run: pa.RecordBatch, cut: str) -> int:
    ids = run["prompt_id"]
    return bisect.bisect_left(range(len(ids)), cut, key=lambda place: ids[place].as_py())
