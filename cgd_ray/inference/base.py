"""What an engine is: something that completes a conversation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cgd_ray.prompts.conversation import Turn
from cgd_ray.redaction import redact


@dataclass(frozen=True)
class Decoding:
    """How one completion is decoded, with nothing left to a model's own defaults."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One completion to be made. `key` names it in logs and is the same in every attempt."""

    key: str
    row: str
    """The row that it is made for: one row's requests follow each other."""
    turns: tuple[Turn, ...]
    decoding: Decoding


@dataclass(frozen=True)
class Completion:
    """What came back; token counts as the engine counted them."""

    text: str
    truncated: bool  # ended by a length limit, or before the thinking was over
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


_ENDED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "stop_str", "complete", "completed"}
_CUT_OFF = {
    "length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded",
    "content_filter", "safety", "recitation", "repetition",
}  # fmt: skip
"""Finish reasons of vLLM and of what other endpoints say in their place."""


def is_cut_off(finish_reason: str | None) -> bool:
    """Whether a completion ended before its end, in a way in which it would end again.

    Raises:
        CompletionError: it did not end at all ("abort", "error", no reason): it may the next time.
    """
    reason = (finish_reason or "").lower()
    if reason not in _ENDED and reason not in _CUT_OFF:
        raise CompletionError(f"the completion ended with {finish_reason!r}")
    return reason in _CUT_OFF


class CompletionError(Exception):
    """This one row cannot be completed now; it is kept as failed, with this text, and tried again by the next run.

    Tokens that were paid for all the same are kept with it.
    """

    def __init__(self, text: str, prompt_tokens: int | None = None, completion_tokens: int | None = None) -> None:
        super().__init__(redact(text))
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens


class PromptTooLongError(CompletionError):
    """The prompt leaves no room for the completion; the same engine would refuse it again, so it is not tried again."""


class PoisonError(CompletionError):
    """This row kills the engine; it is set apart and not tried again."""


class EngineDiedError(Exception):
    """The engine is gone, and with it all that it worked on; the text holds the tail of its log."""

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))


class CeilingError(Exception):
    """The engine's spend ceiling is reached: the row stays undone and the run stops resumably."""

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))


@contextlib.asynccontextmanager
async def answered_within(seconds: float) -> AsyncIterator[None]:
    """Give one row up that an engine does not answer, though it lives.

    Raises:
        CompletionError: the block took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise CompletionError(f"no answer within {seconds:g} s (engine.request_timeout_s)") from error


class Engine(Protocol):
    """A model that completes conversations, many at a time, on one event loop."""

    async def start(self) -> None:
        """Load whatever is needed.

        Raises:
            CgdError: it cannot work at all (no such model, wrong key, ...).
        """

    async def complete(self, request: Request) -> Completion:
        """Complete one conversation.

        Raises:
            CompletionError: this row failed.
            EngineDiedError: the engine is of no more use.
            CeilingError: nothing more may be spent.
        """

    async def close(self) -> None:
        """Give everything back, child processes included."""
