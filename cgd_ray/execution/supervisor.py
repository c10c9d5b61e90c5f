"""An engine that dies is started again, and a row that kills it is found and set apart."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from cgd_ray.errors import CgdError
from cgd_ray.inference.base import Completion, Engine, EngineDiedError, PoisonError, Request

log = structlog.get_logger(__name__)

_FREE_DEATHS = 1  # a row may see so many without suspicion: nodes are taken away, drivers fail
MOST_DEATHS = 16
"""Of an engine in a row, with nothing finished in between; halving 4,096 suspects takes 12."""
_CLOSE_SECONDS = 30.0


@dataclass(frozen=True)
class Strike:
    """What is held against a row."""

    deaths: int
    """Deaths of an engine that it was on."""
    most: int | None
    """Suspects that may be on an engine together with it, itself included; 0: it is convicted; None: no suspicion."""


class Strikes:
    """Rows that were on an engine when it died.

    From the second death on they are suspects, and run in groups of half the size: n suspects with one bad row among
    them cost about log2(n) more deaths. Who is on an engine alone when it dies is convicted.
    """

    def __init__(self) -> None:
        self._strikes: dict[str, Strike] = {}

    def death(self, rows: Iterable[str]) -> None:
        """These rows were on an engine when it died."""
        seen = list(rows)
        for row in seen:
            deaths = self.of(row).deaths + 1
            self._strikes[row] = Strike(deaths, len(seen) // 2 if deaths > _FREE_DEATHS else None)

    def of(self, row: str) -> Strike:
        """What is held against this row."""
        return self._strikes.get(row, Strike(0, None))

    def hold(self, row: str, strike: Strike) -> None:
        """Hold against the row what was found out elsewhere."""
        if strike.deaths > self.of(row).deaths:
            self._strikes[row] = strike

    def clear(self, row: str) -> None:
        """Nothing is held against it any more."""
        self._strikes.pop(row, None)

    @property
    def any_suspect(self) -> bool:
        """Whether any row is a suspect."""
        return any(strike.most is not None for strike in self._strikes.values())


class Ward:
    """Lets rows onto one engine: all of them as long as nobody is a suspect, then suspects only, in small groups."""

    def __init__(self) -> None:
        self.strikes = Strikes()
        self.inside: set[str] = set()
        self._waiting = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def admitted(self, row: str) -> AsyncIterator[None]:
        """Wait until the row may be on the engine; let the next ones in after it."""
        if self.strikes.any_suspect:
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
        if not self.strikes.any_suspect:
            return True
        most = [self.strikes.of(other).most for other in (row, *self.inside)]
        return all(limit is not None and len(self.inside) < limit for limit in most)


class RevivedEngine:
    """An engine that is made anew whenever it dies, and whose killers are found.

    `report` is told which rows are on the engine before a suspect runs there, and None when there is none left: this
    process may die with its engine, and somebody else must know then.
    """

    def __init__(self, make: Callable[[], Engine], report: Callable[[set[str] | None], Awaitable[None]]) -> None:
        self._make = make
        self._report = report
        self._engine = make()
        self._alive = asyncio.Event()
        self._revival: asyncio.Task[None] | None = None
        self._deaths_in_a_row = 0
        self._broken: CgdError | None = None
        self._ward = Ward()

    @property
    def strikes(self) -> Strikes:
        """What is held against rows."""
        return self._ward.strikes

    @property
    def is_broken(self) -> bool:
        """Whether it died and cannot be started again."""
        return self._broken is not None

    async def start(self) -> None:
        """See `Engine`."""
        await self._engine.start()
        self._alive.set()

    async def complete(self, request: Request) -> Completion:
        """See `Engine`.

        Raises:
            PoisonError: the engine died with this row and no other on it.
            CgdError: the engine cannot be started again, or dies whatever it is given.
        """
        while True:
            await self._alive.wait()
            if self._broken:
                raise self._broken
            self._require_innocent(request.row)
            with contextlib.suppress(EngineDiedError):
                return await self._attempt(request)

    async def left(self, row: str) -> None:
        """This row will ask for nothing more, so whatever is held against it holds nobody back.

        To be said of rows that never came, too: who waits for all suspects to be done would wait for them. Not to be
        said between two requests of a row: the second one may be what kills.
        """
        if self.strikes.of(row).deaths:
            suspected = self.strikes.any_suspect
            self.strikes.clear(row)
            if suspected and not self.strikes.any_suspect:
                await self._report(None)
            await self._ward.look_again()

    async def close(self) -> None:
        """See `Engine`."""
        if self._revival:
            await self._revival
        await self._engine.close()

    async def _attempt(self, request: Request) -> Completion:
        engine = self._engine
        async with self._ward.admitted(request.row):
            if self.strikes.any_suspect:
                await self._report(set(self._ward.inside))
            try:
                made = await engine.complete(request)
            except EngineDiedError as death:
                self._died(engine, death)  # before anybody leaves: all rows of the engine are still inside
                raise
        self._deaths_in_a_row = 0
        return made

    def _died(self, engine: Engine, death: EngineDiedError) -> None:
        if engine is not self._engine or not self._alive.is_set():
            return  # another row has already said so
        self._alive.clear()
        self._deaths_in_a_row += 1
        self.strikes.death(self._ward.inside)
        log.warning("the engine died and is started again", rows=len(self._ward.inside), error=str(death))
        self._revival = asyncio.create_task(self._revive(engine, death))

    async def _revive(self, dead: Engine, death: EngineDiedError) -> None:
        with contextlib.suppress(Exception):  # what is left of it may be in any state
            await asyncio.wait_for(dead.close(), _CLOSE_SECONDS)
        # Whatever it fails of: the rows that wait for the engine must hear of it.
        [failure] = await asyncio.gather(self._start_anew(death), return_exceptions=True)
        if isinstance(failure, CgdError):
            self._broken = failure
        elif failure is not None:
            self._broken = CgdError(f"{type(failure).__name__}: {failure}")
        self._alive.set()

    async def _start_anew(self, death: EngineDiedError) -> None:
        if self._deaths_in_a_row > MOST_DEATHS:
            raise CgdError(f"the engine died {self._deaths_in_a_row} times in a row: {death}")
        self._engine = self._make()
        await self._engine.start()

    def _require_innocent(self, row: str) -> None:
        strike = self.strikes.of(row)
        if strike.most == 0:
            raise PoisonError(f"the engine died {strike.deaths} times with this row on it, the last time alone")
