"""An engine that dies is started again, and a row that kills it is found and set apart."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from cgd_ray.errors import CgdError
from cgd_ray.execution.quarantine import SuspectAdmission, SuspectTracker
from cgd_ray.inference.base import Completion, Engine, EngineDiedError, PoisonError, Request

log = structlog.get_logger(__name__)

MOST_DEATHS = 16
"""Of an engine in a row, with nothing finished in between; halving 4,096 suspects takes 12."""
_CLOSE_SECONDS = 30.0


class RestartingEngine:
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
        self._admission = SuspectAdmission()

    @property
    def suspicions(self) -> SuspectTracker:
        """What is held against rows."""
        return self._admission.suspicions

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
        if self.suspicions.of(row).deaths:
            suspected = self.suspicions.any_suspect
            self.suspicions.clear(row)
            if suspected and not self.suspicions.any_suspect:
                await self._report(None)
            await self._admission.look_again()

    async def close(self) -> None:
        """See `Engine`."""
        if self._revival:
            await self._revival
        await self._engine.close()

    async def _attempt(self, request: Request) -> Completion:
        engine = self._engine
        async with self._admission.admitted(request.row):
            if self.suspicions.any_suspect:
                await self._report(set(self._admission.inside))
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
        self.suspicions.death(self._admission.inside)
        log.warning("the engine died; restarting it", rows=len(self._admission.inside), error=str(death))
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
        strike = self.suspicions.of(row)
        if strike.most == 0:
            raise PoisonError(f"the engine died {strike.deaths} times with this row on it, the last time alone")
