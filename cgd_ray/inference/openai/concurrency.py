"""Limit the concurrent requests to an endpoint to what it accepts, determined as TCP does for a network."""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator

_TICK = 0.001  # a timer may fire one clock tick early, and there is no second timer


class AimdConcurrencyLimiter:
    """Admits requests, oldest first, at most `most` at a time, on one event loop.

    After a refusal of any request, no request is sent during the Retry-After window. Then one is sent, and each answer
    admits one more, up to half the number allowed at the refusal. From there, each round of answers admits one more
    (slow start and congestion avoidance of RFC 5681).
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
        """Wait until a request may be sent, lower ages first; yield the time at which it was admitted."""
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
        """Record that the endpoint answered a request sent at time `sent`."""
        if sent <= self._refused:
            return
        more = 1.0 if self._allowed < self._threshold else 1 / self._allowed
        self._allowed = min(float(self._most), self._allowed + more)

    def is_news(self, sent: float) -> bool:
        """Whether a refusal of a request sent at time `sent` is news: the request was sent after the last refusal."""
        return sent > self._refused

    def refused(self, sent: float, seconds: float) -> None:
        """Record that the endpoint refused a request sent at time `sent`, and pause for `seconds`."""
        loop = asyncio.get_running_loop()
        if self.is_news(sent):  # requests in flight at the last refusal add no information
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
