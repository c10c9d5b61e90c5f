"""A real HTTP server with an OpenAI-compatible endpoint that limits rates, drops connections and answers slowly."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web

from tests.background import serving

_DROPPED, _SLOW = 17, 13  # one of so many
_SLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Arrival:
    """A request and what became of it."""

    time: float
    text: str
    status: int  # 0: dropped


class LimitedEndpoint:
    """Serves so many requests a second and as many in a burst; others are told to come back after whole seconds."""

    def __init__(self, per_second: float, retry_after: int) -> None:
        self.retry_after = retry_after
        self.arrivals: list[Arrival] = []
        self.billed_tokens = 0
        self.url = ""
        self.per_second = per_second
        self._bucket = per_second
        self._filled = time.monotonic()
        self._served = 0

    def answered(self, before: float = math.inf) -> list[Arrival]:
        """Requests that came before this time and were answered, or soon will be."""
        return [arrival for arrival in self.arrivals if arrival.status == 200 and arrival.time < before]

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "teacher", "object": "model"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][-1]["content"]
        if not self._take():
            self._note(text, 429)
            headers = {"Retry-After": str(self.retry_after)}
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)
        self._served += 1
        if self._served % _DROPPED == 0:
            self._note(text, 0)
            assert request.transport is not None
            request.transport.abort()
            raise web.HTTPServiceUnavailable
        self._note(text, 200)
        await asyncio.sleep(_SLOW_SECONDS if self._served % _SLOW == 0 else 0.02)
        return web.json_response(self._answer(body))

    async def serve(self, ready: threading.Event) -> None:
        application = web.Application()
        application.router.add_get("/v1/models", self.models)
        application.router.add_post("/v1/chat/completions", self.complete)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    def _take(self) -> bool:
        now = time.monotonic()
        self._bucket = min(self.per_second, self._bucket + (now - self._filled) * self.per_second)
        self._filled = now
        has = self._bucket >= 1
        self._bucket -= has
        return has

    def _note(self, text: str, status: int) -> None:
        self.arrivals.append(Arrival(time.monotonic(), text, status))

    def _answer(self, body: dict[str, object]) -> dict[str, object]:
        self.billed_tokens += 120
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": f"Fine. {len(str(body))}"},
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "teacher",
            "choices": [choice],
            "usage": usage,
        }


@contextlib.contextmanager
def limited_endpoint(per_second: float, retry_after: int = 1) -> Iterator[LimitedEndpoint]:
    """The server on a thread of its own, for as long as the block takes."""
    endpoint = LimitedEndpoint(per_second, retry_after)
    with serving(endpoint.serve):
        yield endpoint
