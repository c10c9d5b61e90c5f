"""What may be spent at an endpoint: a request that might exceed the ceiling is not sent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import openai
from openai.types.chat import ChatCompletion

from cgd_ray.config.engine import TeacherOpenAI
from cgd_ray.engines.base import CeilingError, Request

_TEMPLATE_TOKENS = 16  # that a chat template puts around a turn, at most


class Payment:
    """What one request may cost, and then does."""

    def __init__(self, options: TeacherOpenAI, request: Request) -> None:
        self._options = options
        # A token of a byte-level vocabulary is a byte at least.
        prompt = sum(len(turn.content.encode()) + _TEMPLATE_TOKENS for turn in request.turns)
        self.most = options.cost(prompt, request.decoding.max_tokens)
        self.due = 0.0

    def answered(self, answer: object) -> None:
        """The endpoint answered; what does not say its usage is taken to have cost the most."""
        usage = answer.usage if isinstance(answer, ChatCompletion) else None
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else None
        self.due = self.most if counts is None or None in counts else self._options.cost(*counts)

    def failed(self, error: Exception) -> None:
        """It did not; where it may have worked all the same, it will ask for the money."""
        is_unsent = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
        is_unknown = isinstance(error, openai.APIConnectionError | ValueError)  # timeouts among the former
        self.due = self.most if is_unknown and not is_unsent else 0.0


class Purse:
    """Counts money on one event loop.

    What requests under way may cost at most is set aside, so that near the ceiling fewer go at a time.
    """

    def __init__(self, options: TeacherOpenAI, spent: float) -> None:
        self._options = options
        self._spent = spent
        self._set_aside = 0.0
        self._under_way = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Payment]:
        """Set aside what the request may cost, for the length of a block, and pay what it cost.

        Raises:
            CeilingError: it may exceed the ceiling.
        """
        payment = Payment(self._options, request)
        await self._set_apart(payment.most)
        try:
            yield payment
        finally:
            async with self._changed:
                self._spent += payment.due
                self._set_aside -= payment.most
                self._under_way -= 1
                self._changed.notify_all()

    def require_money(self) -> None:
        """Stop where more was asked than could be: endpoints may bill tokens that they do not show.

        Raises:
            CeilingError: the ceiling is reached.
        """
        ceiling = self._options.spend_ceiling
        if ceiling is not None and self._spent >= ceiling:
            raise CeilingError(f"teacher.engine.spend_ceiling {ceiling} is reached: {self._spent:.4f} spent")

    async def _set_apart(self, most: float) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(most) or not self._under_way)
            if not self._fits(most):
                raise CeilingError(
                    f"teacher.engine.spend_ceiling {self._options.spend_ceiling} is reached: {self._spent:.4f} spent, "
                    f"and the next request may cost {most:.4f}"
                )
            self._set_aside += most
            self._under_way += 1

    def _fits(self, most: float) -> bool:
        ceiling = self._options.spend_ceiling
        return ceiling is None or self._spent + self._set_aside + most <= ceiling
