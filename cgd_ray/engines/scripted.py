"""A deterministic function in place of a model: it can be slow, fail and truncate on demand. For tests and scale."""

import asyncio
import hashlib

from cgd_ray.config.engine import ScriptedOptions
from cgd_ray.engines.base import Completion, CompletionError, Request


class ScriptedEngine:
    """Answers every request from a hash of its conversation."""

    def __init__(self, options: ScriptedOptions) -> None:
        self._options = options
        self._seen: set[str] = set()

    async def start(self) -> None:
        """Nothing to load."""

    async def complete(self, request: Request) -> Completion:
        """A text made of the request's hash; critiques end in the scripted verdict."""
        await asyncio.sleep(self._options.latency_ms / 1000)
        last = request.turns[-1].content
        whole = "\x00".join(turn.content for turn in request.turns)
        digest = hashlib.blake2b(f"{whole}\x00{request.decoding.seed}".encode(), digest_size=8).hexdigest()
        share = int(digest, 16) / 2**64
        if share < self._options.fail_fraction and request.key not in self._seen:
            self._seen.add(request.key)
            raise CompletionError(f"scripted failure of {request.key}")
        truncated = share > 1 - self._options.truncate_fraction
        text = f"Scripted text {digest}: \\boxed{{{int(digest[:4], 16)}}}"
        if "Verdict:" in last:
            text += f"\nVerdict: {self._options.verdict}"
        return Completion(
            text=text,
            truncated=truncated,
            finish_reason="length" if truncated else "stop",
            prompt_tokens=len(whole.split()),
            completion_tokens=len(text.split()),
            cached_tokens=0,
        )

    async def close(self) -> None:
        """Nothing to give back."""
