"""A deterministic function in place of a model: it can be slow, fail and truncate on demand. For tests and scale."""

import asyncio
import hashlib
import os
from pathlib import Path

import ray

from cgd_ray.config.engine import ScriptedOptions
from cgd_ray.errors import CgdError
from cgd_ray.inference.base import Completion, CompletionError, EngineDiedError, Request, answered_within


class ScriptedEngine:
    """Answers every request from a hash of its conversation."""

    def __init__(self, options: ScriptedOptions) -> None:
        self._options = options
        self._seen: set[str] = set()
        self._dead = False

    async def start(self) -> None:
        """Nothing to load.

        Raises:
            CgdError: the engine is told to refuse this node.
        """
        if self._options.refuse_on and (node := _refused_node(Path(self._options.refuse_on))):
            raise CgdError(f"scripted refusal of node {node}")

    async def complete(self, request: Request) -> Completion:
        """A text made of the request's hash; critiques end in the scripted verdict."""
        last = request.turns[-1].content
        whole = "\x00".join(turn.content for turn in request.turns)
        async with answered_within(self._options.request_timeout_s):
            await self._suffer(whole)
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

    async def _suffer(self, conversation: str) -> None:
        """Wait as long as the answer takes, or what comes in its place."""
        options = self._options
        if options.kill_on and options.kill_on in conversation:
            os._exit(1)
        self._dead = self._dead or bool(options.die_on and options.die_on in conversation)
        if options.hang_on and options.hang_on in conversation:
            await asyncio.Event().wait()
        await asyncio.sleep(options.latency_ms / 1000)
        if self._dead:
            raise EngineDiedError("the scripted engine died")

    async def close(self) -> None:
        """Nothing to give back."""


def _refused_node(file: Path) -> str | None:
    """The id of this node, where the file names it."""
    here: str = ray.get_runtime_context().get_node_id()
    return here if file.exists() and here in file.read_text().split() else None
