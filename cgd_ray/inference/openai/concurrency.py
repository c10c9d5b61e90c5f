"""How many requests an endpoint is sent at a time: as many as it takes, found out as TCP does for a network."""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator

_TICK = 0.001  # timers may come a clock's tick early, and there is no second one


class AimdConcurrencyLimiter:
    """Lets requests through, the oldest first, at most `most` at a time; on one event loop.

    After a refusal none goes for as long as the endpoint asks for, whoever was refused. Then one goes, and with each
    answer one more may, until half as many are under way as were when the endpoint refused; from there on one more for
    each round of answers (slow start and congestion avoidance of RFC 5681).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._allowed = float(most)
        self._threshold = float(most)
        self._inside = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._places = itertools.count()
        self._refused = -1.0
        self._reopens = 0.0

    @contextlib.asynccontextmanager
    async def passage(self, age: int) -> AsyncIterator[float]:
        """Wait until a request may be sent, those of a lower age first; gives the time at which it was let through."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        heapq.heappush(self._waiting, (age, next(self._places), turn))
        self._admit()
        try:
            await turn
            yield loop.time()
        finally:
            if turn.done() and not turn.cancelled():
                self._inside -= 1
            self._admit()

    def served(self, sent: float) -> None:
        """The endpoint answered what was sent then."""
        if sent <= self._refused:
            return
        more = 1.0 if self._allowed < self._threshold else 1 / self._allowed
        self._allowed = min(float(self._most), self._allowed + more)

    def is_news(self, sent: float) -> bool:
        """Whether a refusal of what was sent then says more than the one before it."""
        return sent > self._refused

    def refused(self, sent: float, seconds: float) -> None:
        """The endpoint refused what was sent then, and wants to be left alone for a while."""
        loop = asyncio.get_running_loop()
        if self.is_news(sent):  # what was under way when another was refused says nothing new
            self._threshold = max(1.0, self._allowed / 2)
            self._allowed = 1.0
            self._refused = loop.time()
        self._reopens = max(self._reopens, loop.time() + seconds)
        loop.call_at(self._reopens, self._admit)

    def _admit(self) -> None:
        if asyncio.get_running_loop().time() < self._reopens - _TICK:
            return
        while self._waiting and self._inside < int(self._allowed):
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
