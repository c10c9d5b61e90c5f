"""A deterministic function in place of a model: slow, failing or truncating on demand. For fault and scale tests."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from cgd_ray.errors import CgdError
from cgd_ray.inference.base import Completion, CompletionError, Engine, EngineDiedError, Request, answered_within
from cgd_ray.inference.options import ModelRef, Replicated
from cgd_ray.runtime.demand import Demand

if TYPE_CHECKING:
    from cgd_ray.config.run import StorageSection
    from cgd_ray.runtime.cluster import Cluster

_CORES = 0.01


class ScriptedOptions(Replicated):
    """A deterministic function in place of a model, for fault injection and scale tests; never evidence of quality."""

    max_model_len: ClassVar[int | None] = None
    chat_template: ClassVar[str | None] = None

    type: Literal["scripted"]
    model: str = "scripted"
    revision: str | None = None
    latency_ms: Annotated[float, Field(ge=0)] = 0.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that one engine requests from Ray but does not use, to test the placement of engines without models."""
    accelerator_type: str | None = None

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("Ray gives whole GPUs, or a fraction of one. Fix: write a whole number")
        return gpus

    fail_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of rows, selected by hash, whose first attempt fails."""
    truncate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of rows, selected by hash, that end with finish reason `length`."""
    verdict: Literal["right", "wrong"] = "wrong"
    die_on: str | None = None
    """Text in a conversation on which the engine dies."""
    kill_on: str | None = None
    """Text in a conversation on which the engine's whole process dies."""
    hang_on: str | None = None
    """Text in a conversation that the engine never answers."""
    refuse_on: str | None = None
    """File with the ids of Ray nodes, one per line, on which no engine starts."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 1800.0

    def identity(self) -> dict[str, object]:
        """Return the options that change texts; a failure is not a result."""
        return {key: getattr(self, key) for key in ("truncate_fraction", "verdict")}

    def model_identity(self, model: ModelRef, storage: "StorageSection", key: str) -> str:
        """Return the model's name, and the options' revision; no weights are read, so the pinned one does not count."""
        del storage, key
        return f"scripted:{model.name}" + (f"@{self.revision}" if self.revision else "")

    def demand(self, cluster: "Cluster", *, sharing: int, key: str) -> Demand:
        """Return a hundredth of a core, and the GPUs in the options."""
        del cluster, sharing, key
        return Demand(_CORES, self.gpus, self.accelerator_type)

    def make_engine(self, model: ModelRef, storage: "StorageSection", demand: Demand, spent: float) -> "Engine":
        """Create a `ScriptedEngine`."""
        del model, storage, demand, spent
        return ScriptedEngine(self)


class ScriptedEngine:
    """Answers every request from a hash of its conversation."""

    def __init__(self, options: ScriptedOptions) -> None:
        self._options = options
        self._seen: set[str] = set()
        self._dead = False

    async def start(self) -> None:
        """Load nothing.

        Raises:
            CgdError: `refuse_on` lists this node.
        """
        if self._options.refuse_on and (node := _refused_node(Path(self._options.refuse_on))):
            raise CgdError(f"scripted refusal of node {node}")

    async def complete(self, request: Request) -> Completion:
        """Return a text made from the request's hash; critiques end with the scripted verdict."""
        last = request.turns[-1].content
        whole = "\x00".join(turn.content for turn in request.turns)
        async with answered_within(self._options.request_timeout_s):
            await self._misbehave(whole)
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

    async def _misbehave(self, conversation: str) -> None:
        """Wait for the scripted latency, or die, exit or hang as scripted."""
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
        """Release nothing."""


def _refused_node(file: Path) -> str | None:
    """Return the id of this node if the file lists it."""
    import ray  # takes seconds, not needed to read a recipe

    here: str = ray.get_runtime_context().get_node_id()
    return here if file.exists() and here in file.read_text().split() else None
