"""What an endpoint's errors mean: ask again, ask less, or give the row up."""

import datetime as dt
import email.utils
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import openai

from cgd_ray.inference.base import CeilingError, CompletionError, PromptTooLongError
from cgd_ray.inference.openai.overlong import says_too_long
from cgd_ray.inference.openai.replies import ReplyError

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 60.0
_PASSING = (408, 409)  # statuses below 500 of what may work the next time
_BAD_REQUEST, _UNPAID, _TOO_LARGE, _TOO_MANY, _SERVER_ERRORS, _UNAVAILABLE = 400, 402, 413, 429, 500, 503
_LONGEST_WORDS = 800  # characters that are kept of what an endpoint says

_LIMITED = re.compile(r"rate.?limit|too_many|throttl|resource_exhausted", re.IGNORECASE)
_OVERLOADED = re.compile(r"overload|unavailable|server_error|internal|timeout|upstream|provider_error", re.IGNORECASE)
_QUOTA = re.compile(
    r"insufficient_quota|insufficient[ _](balance|credits?|funds)|billing_(not_active|hard_limit)", re.I
)


@dataclass(frozen=True)
class RetryableError:
    """An error after which the request may be sent again."""

    text: str
    is_refusal: bool
    """The endpoint wants fewer requests, this one and all others."""
    wait: float | None
    """Seconds that it asks for."""
    counts: bool = True
    """Whether it says something of the row, and is one of its tries."""


def retryable_error(error: Exception) -> RetryableError:
    """What to make of what the client raised, or of a time that ran out.

    Raises:
        CompletionError: the same request would fail again.
        CeilingError: the endpoint will serve nobody until somebody pays.
    """
    if isinstance(error, openai.APIStatusError):
        words = _words(error)
        wait = _retry_after(error.response.headers)
        codes = " ".join(str(code) for code in (error.code, error.type) if code)
        text = f"{type(error).__name__}: {words[:_LONGEST_WORDS]}"
        try:
            return _judged(text, f"{codes} {words}", error.status_code, wait)
        except (CompletionError, CeilingError) as judgement:
            raise judgement from error
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_WORDS]}"
    if isinstance(error, openai.APIConnectionError | ValueError | TimeoutError):  # of the client's among the first
        return RetryableError(text, is_refusal=False, wait=None)
    raise CompletionError(text) from error


def _words(error: openai.APIStatusError) -> str:
    """What the client makes of a refusal, and the body, where it leaves that out."""
    words, body = " ".join(str(error).split()), " ".join(error.response.text.split())
    told = error.body.get("message") if isinstance(error.body, dict) else None
    return words if not body or (told and str(told) in words) or body in words else f"{words}: {body}"


def retryable_reply(told: ReplyError) -> RetryableError:
    """The same for an error that came in the body of a success.

    Raises:
        CompletionError: the same request would fail again.
        CeilingError: the endpoint will serve nobody until somebody pays.
    """
    words = told.words[:_LONGEST_WORDS]
    text = f"the endpoint's answer holds an error in place of a completion: {words} ({told.code or 'no code'})"
    status = told.status
    if status is None:
        status = _TOO_MANY if _LIMITED.search(told.code) else _SERVER_ERRORS if _OVERLOADED.search(told.code) else None
    return _judged(text, f"{told.code} {told.words}", status or _BAD_REQUEST, None)


def _judged(text: str, words: str, status: int, wait: float | None) -> RetryableError:
    """What a status and the words beside it mean."""
    if _QUOTA.search(words) and status in (_TOO_MANY, _UNPAID):
        raise CeilingError(f"the teacher's endpoint: its quota is used up ({text})")
    if status == _TOO_LARGE or says_too_long(words):
        raise PromptTooLongError(text)
    if status == _TOO_MANY or (status == _UNAVAILABLE and wait is not None):
        return RetryableError(text, is_refusal=True, wait=wait)
    if status in _PASSING or status >= _SERVER_ERRORS:
        return RetryableError(text, is_refusal=False, wait=None)
    raise CompletionError(text)


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
