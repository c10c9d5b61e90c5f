"""Group commit: rows of many coroutines share a part, and each coroutine is notified when its row is on storage."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cgd_ray.storage.tables import Table, shard_of

_Entry = tuple[dict[str, Any], "asyncio.Future[None]"]


class Committer:
    """Collects rows for one table and writes them as parts, on one event loop.

    Writes a part when `flush_rows` rows wait, when the oldest has waited `flush_seconds`, or on `flush`. No part holds
    rows of two shards: an engine works on several shards at a time, and reading one shard would read them all. Part
    names hold the attempt and a token of this writer, so writers never use the same name. Rows given to `after`
    earlier are on storage first. If they could not be written, nothing more is written: a row whose input is lost
    would have to be generated again.
    """

    def __init__(
        self,
        table: Table,
        *,
        attempt: int,
        flush_rows: int,
        flush_seconds: float,
        after: "Committer | None" = None,
        borders: Sequence[str] = (),
    ) -> None:
        """Create a committer.

        Args:
            table: table that the rows are written to.
            attempt: number of the command's attempt, for the parts' names.
            flush_rows: rows of one shard that make a part.
            flush_seconds: longest time in seconds that a row waits for others.
            after: the committer of the rows that these rows are made from.
            borders: borders between shards, see `shard_of`.
        """
        self._table = table
        self._borders = borders
        self._after = after
        self._prefix = f"part-{attempt:04d}-{secrets.token_hex(6)}"
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._waiting: dict[int, list[_Entry]] = defaultdict(list)
        self._timer: asyncio.TimerHandle | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._sequence = 0
        self.failure: BaseException | None = None
        """The first error of a write; None while all writes succeed."""

    def add(self, row: dict[str, Any]) -> "asyncio.Future[None]":
        """Take a row; the future ends when the row is on storage, or with the error that prevented the write."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        shard = shard_of(self._borders, row["prompt_id"])
        self._waiting[shard].append((row, done))
        if len(self._waiting[shard]) >= self._flush_rows:
            self._begin(shard)
        elif self._timer is None:
            self._timer = loop.call_later(self._flush_seconds, self.flush)
        return done

    @property
    def waiting(self) -> int:
        """Number of rows whose write has not started."""
        return sum(map(len, self._waiting.values()))

    def flush(self) -> None:
        """Start writing all waiting rows."""
        for shard in list(self._waiting):
            self._begin(shard)

    async def close(self) -> None:
        """Write all waiting rows and wait for all writes."""
        self.flush()
        await asyncio.gather(*self._writes)

    def _begin(self, shard: int) -> None:
        task = asyncio.get_running_loop().create_task(self._write(shard, self._waiting.pop(shard)))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        if self._timer is not None and not self._waiting:
            self._timer.cancel()
            self._timer = None

    async def settle(self, shard: int) -> None:
        """Write the waiting rows of a shard, and wait for all writes."""
        if shard in self._waiting:
            self._begin(shard)
        await asyncio.gather(*self._writes)

    async def _write(self, shard: int, entries: list[_Entry]) -> None:
        part = f"{self._prefix}-{self._sequence:06d}"
        self._sequence += 1
        rows = [row for row, _ in entries]
        if self._after is not None:
            await self._after.settle(shard)
            self.failure = self.failure or self._after.failure
        failure = self.failure
        if failure is None:
            # Any exception of the store is passed to each waiting coroutine.
            write = asyncio.to_thread(self._table.write_part, part, rows)
            [failure] = await asyncio.gather(write, return_exceptions=True)
            self.failure = self.failure or failure
        for _, done in entries:
            if done.cancelled():
                continue
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)
