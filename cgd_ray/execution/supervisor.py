"""Restart an engine that dies, and find and quarantine the row that crashes it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from cgd_ray.errors import CgdError
from cgd_ray.execution.quarantine import SuspectAdmission, SuspectTracker
from cgd_ray.inference.base import Completion, Engine, EngineDiedError, PoisonError, Request

log = structlog.get_logger(__name__)

MOST_DEATHS = 16
"""Maximum deaths of an engine in a row, with nothing finished in between; halving 4,096 suspects takes 12."""
_CLOSE_TIMEOUT_S = 30.0


class RestartingEngine:
    """Restarts its engine whenever it dies, and finds the rows that crash it.

    `report` gets the rows on the engine before a suspect runs there, and None when no suspect is left. This process may
    die with its engine, so another process must hold this record.
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
        """Suspicions against rows."""
        return self._admission.suspicions

    @property
    def is_broken(self) -> bool:
        """Whether the engine died and cannot be restarted."""
        return self._broken is not None

    async def start(self) -> None:
        """See `Engine`."""
        await self._engine.start()
        self._alive.set()

    async def complete(self, request: Request) -> Completion:
        """See `Engine`.

        Raises:
            PoisonError: the engine died with only this row on it.
            CgdError: the engine cannot be restarted, or dies on any row.
        """
        while True:
            await self._alive.wait()
            if self._broken:
                raise self._broken
            self._require_not_quarantined(request.row)
            with contextlib.suppress(EngineDiedError):
                return await self._attempt(request)

    async def left(self, row: str) -> None:
        """Record that this row sends no further requests, so that a suspicion against it blocks no other row.

        Also call this for rows that never came: other rows wait until all suspects are done. Do not call it between two
        requests of a row: the second may be the one that crashes the engine.
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
                self._died(engine, death)  # before any row leaves: all rows of the engine are still inside
                raise
        self._deaths_in_a_row = 0
        return made

    def _died(self, engine: Engine, death: EngineDiedError) -> None:
        if engine is not self._engine or not self._alive.is_set():
            return  # another row has already reported it
        self._alive.clear()
        self._deaths_in_a_row += 1
        self.suspicions.death(self._admission.inside)
        log.warning("the engine died; restarting it", rows=len(self._admission.inside), error=str(death))
        self._revival = asyncio.create_task(self._revive(engine, death))

    async def _revive(self, dead: Engine, death: EngineDiedError) -> None:
        with contextlib.suppress(Exception):  # the dead engine may be in any state
            await asyncio.wait_for(dead.close(), _CLOSE_TIMEOUT_S)
        # Catch any failure: the rows that wait for the engine must get it.
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

    def _require_not_quarantined(self, row: str) -> None:
        suspicion = self.suspicions.of(row)
        if suspicion.most == 0:
            raise PoisonError(f"the engine died {suspicion.deaths} times with this row on it, the last time alone")
