"""Classify an endpoint's errors: retry, send fewer requests, or fail the row."""

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
_PASSING = (408, 409)  # statuses below 500 after which a retry may succeed
_BAD_REQUEST, _UNPAID, _TOO_LARGE, _TOO_MANY, _SERVER_ERRORS, _UNAVAILABLE = 400, 402, 413, 429, 500, 503
_LONGEST_WORDS = 800  # characters kept of an endpoint's message

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
    """Whether the endpoint refuses because of the rate of all requests."""
    wait: float | None
    """Wait in seconds that the endpoint requests."""
    counts: bool = True
    """Whether it is about the row, and counts as one of its tries."""


def retryable_error(error: Exception) -> RetryableError:
    """Classify an exception of the client, or a timeout.

    Raises:
        CompletionError: the same request would fail again.
        CeilingError: the endpoint's quota is used up; it serves no request until the account is paid.
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
    if isinstance(error, openai.APIConnectionError | ValueError | TimeoutError):  # the first: client timeouts too
        return RetryableError(text, is_refusal=False, wait=None)
    raise CompletionError(text) from error


def _words(error: openai.APIStatusError) -> str:
    """Return the client's message for an error status, plus the body if the message lacks it."""
    words, body = " ".join(str(error).split()), " ".join(error.response.text.split())
    told = error.body.get("message") if isinstance(error.body, dict) else None
    return words if not body or (told and str(told) in words) or body in words else f"{words}: {body}"


def retryable_reply(told: ReplyError) -> RetryableError:
    """Classify an error in the body of a successful response.

    Raises:
        CompletionError: the same request would fail again.
        CeilingError: the endpoint's quota is used up; it serves no request until the account is paid.
    """
    words = told.words[:_LONGEST_WORDS]
    text = f"the endpoint's answer holds an error in place of a completion: {words} ({told.code or 'no code'})"
    status = told.status
    if status is None:
        status = _TOO_MANY if _LIMITED.search(told.code) else _SERVER_ERRORS if _OVERLOADED.search(told.code) else None
    return _judged(text, f"{told.code} {told.words}", status or _BAD_REQUEST, None)


def _judged(text: str, words: str, status: int, wait: float | None) -> RetryableError:
    """Classify a status and the text beside it."""
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
    """Return the seconds before the next try: doubled after each try, with random jitter."""
    longest = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(tries - 1, 10))
    return longest * secrets.SystemRandom().uniform(0.5, 1.0)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in `retry-after-ms` or `Retry-After` (RFC 9110, 10.2.3: seconds or a date)."""
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
    except (ValueError, TypeError):  # neither a number nor a date, or a date without a time zone
        return None
