"""What an endpoint's errors mean: ask again, ask less, or give the row up."""

import datetime as dt
import email.utils
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import openai

from cgd_ray.engines.base import CeilingError, CompletionError, PromptTooLongError

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 60.0
_PASSING = (408, 409)  # statuses below 500 of what may work the next time
_TOO_MANY, _UNAVAILABLE, _SERVER_ERRORS = 429, 503, 500


@dataclass(frozen=True)
class Trouble:
    """An error after which the request may be sent again."""

    text: str
    is_refusal: bool
    """The endpoint wants fewer requests, this one and all others."""
    wait: float | None
    """Seconds that it asks for."""
    counts: bool = True
    """Whether it says something of the row, and is one of its tries."""


def trouble_of(error: openai.OpenAIError | ValueError) -> Trouble:
    """What to make of an error of the client.

    Raises:
        CompletionError: the same request would fail again.
        CeilingError: the endpoint will serve nobody until somebody pays.
    """
    text = f"{type(error).__name__}: {error}"
    match error:
        case openai.RateLimitError(code="insufficient_quota"):
            raise CeilingError(f"the teacher's endpoint says that its quota is used up ({text})") from error
        case openai.APIConnectionError() | ValueError():  # timeouts among the former
            return Trouble(text, is_refusal=False, wait=None)
        case openai.APIStatusError(status_code=status, response=response):
            wait = _retry_after(response.headers)
            if status == _TOO_MANY or (status == _UNAVAILABLE and wait is not None):
                return Trouble(text, is_refusal=True, wait=wait)
            if status in _PASSING or status >= _SERVER_ERRORS:
                return Trouble(text, is_refusal=False, wait=None)
    if isinstance(error, openai.APIStatusError) and _says_too_long(error):
        raise PromptTooLongError(text) from error
    raise CompletionError(text) from error


def _says_too_long(error: openai.APIStatusError) -> bool:
    """OpenAI's code for it, or vLLM's words: with the same model and the same prompt it will always be so."""
    return error.code == "context_length_exceeded" or "maximum context length" in str(error)


def backoff(tries: int) -> float:
    """Seconds before the next try: twice as long after each, and not the same for all."""
    longest = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(tries - 1, 10))
    return longest * secrets.SystemRandom().uniform(0.5, 1.0)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds in `retry-after-ms` or `Retry-After` (RFC 9110, 10.2.3: seconds or a date)."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        left = email.utils.parsedate_to_datetime(value) - dt.datetime.now(dt.UTC)
        return max(0.0, left.total_seconds())
    except (ValueError, TypeError):  # no number and no date, or one without a time zone
        return None
