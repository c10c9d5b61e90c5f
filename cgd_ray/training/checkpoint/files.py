"""Torch's distributed checkpoints in a store: each byte is read once, and names are taken literally."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

from fsspec.spec import AbstractBufferedFile
from fsspec.utils import merge_offset_ranges
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from cgd_ray.compat.torch import FileSystem, StorageInfo
from cgd_ray.storage.filesystem import Store

_AT_ONCE = 32 * 2**20  # maximum bytes of adjacent pieces per request; a larger piece is one request


def _files(store: Store) -> Any:
    """Return torch's file system over the store's: torch's own lookup interprets `::` and, on S3, `[` and `*`."""
    files = FileSystem()
    files.fs = store.fs
    return files


class StoreWriter(FileSystemWriter):
    """Writes a checkpoint into a folder of a store."""

    def __init__(self, store: Store, folder: str) -> None:
        # All tensors are on the host: copying ahead would open a context on the first GPU from every rank's thread.
        super().__init__(store.path(folder), per_thread_copy_ahead=0)
        self.fs, self.path = _files(store), store.path(folder)


class RangeReader(FileSystemReader):
    """Torch's reader, but with one request per piece, or per group of small adjacent pieces.

    Torch's own seeks back and forth inside each piece, and s3fs reads ahead at each seek: 4.5 times the checkpoint.
    """

    _ranges: Iterator[tuple[str, int, int]]
    """Path, start and end of each range, file by file in ascending order."""
    _range = ("", 0, 0)
    _content = memoryview(b"")

    def __init__(self, store: Store, folder: str) -> None:
        super().__init__(store.path(folder))
        self.fs, self.path = _files(store), store.path(folder)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planner's tensors with the items of the plan."""
        items = sorted(plan.items, key=self._place)
        paths, starts, ends = ([self._place(item)[column] for item in items] for column in range(3))
        self._ranges = zip(*merge_offset_ranges(paths, starts, ends, max_block=_AT_ONCE, sort=False), strict=True)
        return super().read_data(replace(plan, items=items), planner)

    def _place(self, item: ReadItem) -> tuple[str, int, int]:
        stored = self.storage_data[item.storage_index]
        return stored.relative_path, stored.offset, stored.offset + stored.length

    def _slice_file(self, file: AbstractBufferedFile, sinfo: StorageInfo) -> BytesIO:
        """Return the bytes of a piece; torch requests pieces in the order of the plan, which is that of the ranges."""
        end = sinfo.offset + sinfo.length
        if sinfo.relative_path != self._range[0] or end > self._range[2]:
            self._range = _, start, stop = next(self._ranges)
            self._content = memoryview(file.fs.cat_file(file.path, start=start, end=stop))
        return BytesIO(self._content[sinfo.offset - self._range[1] : end - self._range[1]])
