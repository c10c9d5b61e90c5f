"""Group commit: rows of many coroutines share a part, and each coroutine learns when its row is safe."""

import asyncio
import secrets
from typing import Any

from cgd_ray.storage.tables import Table


class Committer:
    """Collects rows for one table and writes them as parts, on one event loop.

    A part is written when `flush_rows` wait, when the oldest has waited `flush_seconds`, or on `flush`. Part names hold
    the attempt and a token of this writer, so writers never meet. What `after` was given before is on storage first,
    and where it could not be written, nothing more is: a row whose input is lost would have to be made again.
    """

    def __init__(
        self, table: Table, *, attempt: int, flush_rows: int, flush_seconds: float, after: "Committer | None" = None
    ) -> None:
        self._table = table
        self._after = after
        self._prefix = f"part-{attempt:04d}-{secrets.token_hex(6)}"
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._sequence = 0
        self.failure: BaseException | None = None
        """Why something was not written."""

    def add(self, row: dict[str, Any]) -> "asyncio.Future[None]":
        """Take a row; the future ends when the row is on storage, or with the error that kept it from there."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((row, done))
        if len(self._waiting) >= self._flush_rows:
            self.flush()
        elif self._timer is None:
            self._timer = loop.call_later(self._flush_seconds, self.flush)
        return done

    @property
    def waiting(self) -> int:
        """Rows that nobody writes yet."""
        return len(self._waiting)

    def flush(self) -> None:
        """Start writing what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            task = asyncio.get_running_loop().create_task(self._write(self._waiting))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)
            self._waiting = []

    async def close(self) -> None:
        """Write what waits and wait for all writes."""
        self.flush()
        await asyncio.gather(*self._writes)

    async def _write(self, entries: list[tuple[dict[str, Any], "asyncio.Future[None]"]]) -> None:
        part = f"{self._prefix}-{self._sequence:06d}"
        self._sequence += 1
        rows = [row for row, _ in entries]
        if self._after is not None:
            await self._after.close()
            self.failure = self.failure or self._after.failure
        failure = self.failure
        if failure is None:
            # Whatever the store raises: each waiting coroutine gets it.
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
