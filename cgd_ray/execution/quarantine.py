"""Rows suspected of an engine's death, and the small groups that they run in until the crashing row is found."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

_FREE_DEATHS = 1  # deaths that raise no suspicion against a row: nodes are taken away, drivers fail


@dataclass(frozen=True)
class Suspicion:
    """Suspicion against a row."""

    deaths: int
    """Number of engine deaths while the row was on the engine."""
    most: int | None
    """Maximum number of suspects on an engine, this row included. 0: the row is quarantined. None: not a suspect."""


class SuspectTracker:
    """Tracks rows that were on an engine when it died.

    From the second death on, they are suspects and run in groups of half the size. n suspects with one bad row among
    them cost about log2(n) more deaths. A row alone on an engine when it dies is quarantined.
    """

    def __init__(self) -> None:
        self._suspicions: dict[str, Suspicion] = {}

    def death(self, rows: Iterable[str]) -> None:
        """Record that these rows were on an engine when it died."""
        seen = list(rows)
        for row in seen:
            deaths = self.of(row).deaths + 1
            self._suspicions[row] = Suspicion(deaths, len(seen) // 2 if deaths > _FREE_DEATHS else None)

    def of(self, row: str) -> Suspicion:
        """Return the suspicion against this row."""
        return self._suspicions.get(row, Suspicion(0, None))

    def hold(self, row: str, suspicion: Suspicion) -> None:
        """Adopt a suspicion from elsewhere, if it counts more deaths."""
        if suspicion.deaths > self.of(row).deaths:
            self._suspicions[row] = suspicion

    def clear(self, row: str) -> None:
        """Remove the suspicion against this row."""
        self._suspicions.pop(row, None)

    @property
    def any_suspect(self) -> bool:
        """Whether any row is a suspect."""
        return any(suspicion.most is not None for suspicion in self._suspicions.values())


class SuspectAdmission:
    """Admits rows to one engine: all rows while there is no suspect, then only suspects, in small groups."""

    def __init__(self) -> None:
        self.suspicions = SuspectTracker()
        self.inside: set[str] = set()
        self._waiting = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def admitted(self, row: str) -> AsyncIterator[None]:
        """Wait until the row may be on the engine; admit the next rows when it leaves."""
        if self.suspicions.any_suspect:
            await self._wait_for(row)
        self.inside.add(row)
        try:
            yield
        finally:
            self.inside.discard(row)
            await self.look_again()

    async def look_again(self) -> None:
        """Check the waiting rows again, after a row left or was cleared."""
        if self._waiting:
            async with self._changed:
                self._changed.notify_all()

    async def _wait_for(self, row: str) -> None:
        self._waiting += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._may_enter(row))
        finally:
            self._waiting -= 1

    def _may_enter(self, row: str) -> bool:
        if not self.suspicions.any_suspect:
            return True
        most = [self.suspicions.of(other).most for other in (row, *self.inside)]
        return all(limit is not None and len(self.inside) < limit for limit in most)
