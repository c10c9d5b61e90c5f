"""What may be spent at an endpoint: a request that might exceed the ceiling is not sent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from cgd_ray.config.engine import TeacherOpenAI
from cgd_ray.engines.base import CeilingError, Request

_BYTES_PER_TOKEN = 3  # of a prompt; English has four, so that an estimate is rather too high


class Purse:
    """Counts money on one event loop; without a ceiling it only counts.

    What requests under way may cost at most is set aside, so that near the ceiling fewer go at a time.
    """

    def __init__(self, options: TeacherOpenAI, spent: float) -> None:
        self._options = options
        self._spent = spent
        self._set_aside = 0.0
        self._under_way = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[None]:
        """Set aside what the request may cost, for the length of a block.

        Raises:
            CeilingError: it may exceed the ceiling.
        """
        ceiling = self._options.spend_ceiling
        if ceiling is None:
            yield
            return
        prompt = sum(len(turn.content.encode()) for turn in request.turns) // _BYTES_PER_TOKEN
        most = self._options.cost(prompt, request.decoding.max_tokens)
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(most, ceiling) or not self._under_way)
            if not self._fits(most, ceiling):
                raise CeilingError(
                    f"teacher.engine.spend_ceiling {ceiling} is reached: {self._spent:.4f} spent, and the next request "
                    f"may cost {most:.4f}"
                )
            self._set_aside += most
            self._under_way += 1
        try:
            yield
        finally:
            async with self._changed:
                self._set_aside -= most
                self._under_way -= 1
                self._changed.notify_all()

    def pay(self, prompt_tokens: int, completion_tokens: int) -> None:
        """A request was answered."""
        self._spent += self._options.cost(prompt_tokens, completion_tokens)

    def _fits(self, most: float, ceiling: float) -> bool:
        return self._spent + self._set_aside + most <= ceiling
