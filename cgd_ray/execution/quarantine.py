"""Which rows are suspects of an engine's death, and how few of them run together until the one that kills is found."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

_FREE_DEATHS = 1  # a row may see so many without suspicion: nodes are taken away, drivers fail


@dataclass(frozen=True)
class Suspicion:
    """What is held against a row."""

    deaths: int
    """Deaths of an engine that it was on."""
    most: int | None
    """Suspects that may be on an engine together with it, itself included; 0: it is convicted; None: no suspicion."""


class SuspectTracker:
    """Rows that were on an engine when it died.

    From the second death on they are suspects, and run in groups of half the size: n suspects with one bad row among
    them cost about log2(n) more deaths. Who is on an engine alone when it dies is convicted.
    """

    def __init__(self) -> None:
        self._suspicions: dict[str, Suspicion] = {}

    def death(self, rows: Iterable[str]) -> None:
        """These rows were on an engine when it died."""
        seen = list(rows)
        for row in seen:
            deaths = self.of(row).deaths + 1
            self._suspicions[row] = Suspicion(deaths, len(seen) // 2 if deaths > _FREE_DEATHS else None)

    def of(self, row: str) -> Suspicion:
        """What is held against this row."""
        return self._suspicions.get(row, Suspicion(0, None))

    def hold(self, row: str, strike: Suspicion) -> None:
        """Hold against the row what was found out elsewhere."""
        if strike.deaths > self.of(row).deaths:
            self._suspicions[row] = strike

    def clear(self, row: str) -> None:
        """Nothing is held against it any more."""
        self._suspicions.pop(row, None)

    @property
    def any_suspect(self) -> bool:
        """Whether any row is a suspect."""
        return any(strike.most is not None for strike in self._suspicions.values())


class SuspectAdmission:
    """Lets rows onto one engine: all of them as long as nobody is a suspect, then suspects only, in small groups."""

    def __init__(self) -> None:
        self.suspicions = SuspectTracker()
        self.inside: set[str] = set()
        self._waiting = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def admitted(self, row: str) -> AsyncIterator[None]:
        """Wait until the row may be on the engine; let the next ones in after it."""
        if self.suspicions.any_suspect:
            await self._wait_for(row)
        self.inside.add(row)
        try:
            yield
        finally:
            self.inside.discard(row)
            await self.look_again()

    async def look_again(self) -> None:
        """Somebody left or was cleared: the next ones may be let in."""
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
