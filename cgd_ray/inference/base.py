"""Interface of an engine, which completes conversations."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cgd_ray.prompts.conversation import Turn
from cgd_ray.redaction import one_line, redact


@dataclass(frozen=True)
class Decoding:
    """How one completion is decoded; a model's own defaults never apply."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    """Texts of which the completion must be one, where the engine can force it; else it is only asked for."""


@dataclass(frozen=True)
class Request:
    """One completion to be made. `key` names it in logs and is the same in every attempt."""

    key: str
    row: str
    """The row that it is made for; one row's requests run one after another."""
    turns: tuple[Turn, ...]
    decoding: Decoding


@dataclass(frozen=True)
class Completion:
    """Result of a request; the engine counts the tokens."""

    text: str
    truncated: bool  # cut off by a length limit, or before the thinking ended
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


_ENDED = {
    "stop", "stopped", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "stop_str", "complete",
    "completed", "finish", "finished", "done", "normal", "end", "im_end", "eot", "eot_id", "endoftext", "end_of_text",
    "end_of_turn", "end_of_sentence", "s",
}  # fmt: skip
_CUT_OFF = {
    "length", "max_tokens", "max_output_tokens", "max_new_tokens", "max_length", "model_length", "token_limit",
    "model_context_window_exceeded", "recitation", "repetition",
}  # fmt: skip
"""Finish reasons of vLLM, and their equivalents at other endpoints."""
_FILTERED = re.compile(
    r"content_?filter|safety|sensitive|guardrail|moderat|block(ed|list)|prohibited|refus(al|ed)|spii|policy_violation"
)


def is_cut_off(finish_reason: object) -> bool:
    """Whether a completion was cut off, by a limit or a filter, in a way that a retry would repeat.

    Args:
        finish_reason: the reason in any spelling: "stop", "FINISH_REASON_STOP", "<|im_end|>", "maxTokens".

    Raises:
        CompletionError: it did not end at all ("abort", "error", no reason); a retry may succeed.
    """
    reason = _plain_reason(finish_reason) if isinstance(finish_reason, str) else ""
    if reason in _ENDED:
        return False
    if reason in _CUT_OFF or _FILTERED.search(reason):
        return True
    raise CompletionError(f"the completion ended with {one_line(repr(finish_reason), 200)}")


def _plain_reason(reason: str) -> str:
    """Return a reason in lower case, in words joined by "_", without the marks and prefixes of some endpoints."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", reason).lower()
    return re.sub(r"[\W_]+", "_", words).strip("_").removeprefix("finish_reason_")


class CompletionError(Exception):
    """This row cannot be completed now; it is stored as failed, with this text, and the next run retries it.

    Tokens that were paid for are stored with it.
    """

    def __init__(self, text: str, prompt_tokens: int | None = None, completion_tokens: int | None = None) -> None:
        super().__init__(redact(text))
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens


class PromptTooLongError(CompletionError):
    """The prompt leaves no room for the completion; the same engine would refuse it again, so it is not retried."""


class PoisonError(CompletionError):
    """This row crashes the engine; it is quarantined and not retried."""


class EngineDiedError(Exception):
    """The engine died, and its running requests are lost; the text holds the tail of its log."""

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))


class CeilingError(Exception):
    """The engine's spend ceiling is reached: the row stays undone; the run stops and can be resumed."""

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))


@contextlib.asynccontextmanager
async def answered_within(seconds: float) -> AsyncIterator[None]:
    """Fail a row that a live engine does not answer in time.

    Raises:
        CompletionError: the block took longer than `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise CompletionError(f"no answer within {seconds:g} s (engine.request_timeout_s)") from error


class Engine(Protocol):
    """A model that completes conversations, many at a time, on one event loop."""

    async def start(self) -> None:
        """Load everything that the engine needs.

        Raises:
            CgdError: the engine cannot work at all (no such model, wrong key, ...).
        """

    async def complete(self, request: Request) -> Completion:
        """Complete one conversation.

        Raises:
            CompletionError: this row failed.
            EngineDiedError: the engine died.
            CeilingError: the spend ceiling is reached.
        """

    async def close(self) -> None:
        """Release everything, child processes included."""
