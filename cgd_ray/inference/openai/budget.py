"""Spend budget at an endpoint: a request that might exceed the ceiling is not sent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import openai

from cgd_ray.compat.openai import UNSENT
from cgd_ray.inference.base import CeilingError, Request
from cgd_ray.inference.openai.options import OpenAIOptions
from cgd_ray.inference.openai.replies import error_in, is_completion, token_counts

_TEMPLATE_TOKENS = 16  # maximum that a chat template adds around a turn
# A gateway or the client gave up (520: an answer was lost) while the model may have worked.
_GIVEN_UP = (408, 460, 499, 504, 520, 524, 598)


class Reservation:
    """Maximum cost of one request, and then its actual cost."""

    def __init__(self, options: OpenAIOptions, request: Request) -> None:
        self._options = options
        # A token of a byte-level vocabulary is at least one byte.
        prompt = sum(len(turn.content.encode(errors="surrogatepass")) + _TEMPLATE_TOKENS for turn in request.turns)
        self.most = options.price(prompt, request.decoding.max_tokens)
        self.due = 0.0

    def answered(self, answer: object) -> None:
        """Record an answer; one without usage is charged the maximum cost."""
        self.due = self.most
        if not is_completion(answer):
            return
        counts, told = token_counts(answer), error_in(answer)
        if told and told.status in _GIVEN_UP and not any(counts or ()):
            return
        if counts:
            self.due = self._options.price(*counts)
        elif told:
            self.due = 0.0

    def failed(self, error: Exception) -> None:
        """Record a failure; it is charged the maximum cost if the endpoint may have done the work."""
        was_refused = isinstance(error, openai.APIStatusError) and error.status_code not in _GIVEN_UP
        self.due = 0.0 if was_refused or isinstance(error.__cause__, UNSENT) else self.most


class SpendBudget:
    """Counts money on one event loop.

    The maximum cost of requests in flight is reserved, so near the ceiling fewer requests run at a time.
    """

    def __init__(self, options: OpenAIOptions, spent: float) -> None:
        self._options = options
        self._spent = spent
        self._set_aside = 0.0
        self._under_way = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Reservation]:
        """Reserve the request's maximum cost for the length of a block, then charge its actual cost.

        Raises:
            CeilingError: the request may exceed the ceiling.
        """
        reservation = Reservation(self._options, request)
        await self._set_apart(reservation.most)
        try:
            yield reservation
        finally:
            async with self._changed:
                self._spent += reservation.due
                self._set_aside -= reservation.most
                self._under_way -= 1
                self._changed.notify_all()

    def require_money(self) -> None:
        """Stop if requests cost more than was reserved: endpoints may bill tokens that they do not show.

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
