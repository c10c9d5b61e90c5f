"""Reads a checkpoint's pieces from a store in long ranges, each byte once."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

from fsspec.spec import AbstractBufferedFile
from fsspec.utils import merge_offset_ranges
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

_AT_ONCE = 32 * 2**20  # bytes: of neighbours that one request reads; a piece larger than this is one request


class RangeReader(FsspecReader):
    """Torch's, but with one request for a piece, or for several small ones that lie side by side.

    Torch's own seeks back and forth inside each piece, and s3fs reads ahead at each turn: 4.5 times the checkpoint.
    """

    _ranges: Iterator[tuple[str, int, int]]
    """Of each file in turn, in ascending order: path, start, end."""
    _range = ("", 0, 0)
    _content = memoryview(b"")

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planner's tensors with what the plan names."""
        items = sorted(plan.items, key=self._place)
        paths, starts, ends = ([self._place(item)[column] for item in items] for column in range(3))
        self._ranges = zip(*merge_offset_ranges(paths, starts, ends, max_block=_AT_ONCE, sort=False), strict=True)
        return super().read_data(replace(plan, items=items), planner)

    def _place(self, item: ReadItem) -> tuple[str, int, int]:
        stored = self.storage_data[item.storage_index]
        return stored.relative_path, stored.offset, stored.offset + stored.length

    def _slice_file(self, file: AbstractBufferedFile, sinfo: _StorageInfo) -> BytesIO:
        """The bytes of a piece; torch asks for them in the order of the plan, which is that of the ranges."""
        end = sinfo.offset + sinfo.length
        if sinfo.relative_path != self._range[0] or end > self._range[2]:
            self._range = _, start, stop = next(self._ranges)
            self._content = memoryview(file.fs.cat_file(file.path, start=start, end=stop))
        return BytesIO(self._content[sinfo.offset - self._range[1] : end - self._range[1]])
