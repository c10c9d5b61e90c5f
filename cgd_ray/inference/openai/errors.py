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
from cgd_ray.inference.openai.reply_errors import ReplyError
from cgd_ray.redaction import one_line

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 60.0
_PASSING = (408, 409, 499)  # statuses below 500 after which a retry may succeed
_BAD_REQUEST, _UNPAID, _TOO_LARGE, _TOO_MANY, _SERVER_ERRORS, _UNAVAILABLE = 400, 402, 413, 429, 500, 503
_LONGEST_WORDS, _LONGEST_CODE = 800, 100  # characters kept of an endpoint's message and code

_LIMITED = re.compile(r"rate.?limit|too.many(?!.{0,20}token)|throttl|resource.exhausted|\bqps\b", re.IGNORECASE)
_OVERLOADED = re.compile(
    r"overload|unavailable|server.error|internal|time.?out|timed.out|upstream|provider_error|\bbusy\b", re.IGNORECASE
)
_VAGUE = ("error", "fail", "failed", "failure", "false")  # codes that say nothing
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
        text = f"{type(error).__name__}: {one_line(words, _LONGEST_WORDS)}"
        try:
            return _judged(text, f"{codes} {words}", error.status_code, wait)
        except (CompletionError, CeilingError) as judgement:
            raise judgement from error
    text = f"{type(error).__name__}: {one_line(error, _LONGEST_WORDS)}"
    # The first: client timeouts too. The last: JSON that is nested too deep.
    if isinstance(error, openai.APIConnectionError | ValueError | TimeoutError | RecursionError):
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
    words, code = one_line(told.words, _LONGEST_WORDS), one_line(told.code, _LONGEST_CODE) or "no code"
    text = f"the endpoint's answer holds an error in place of a completion: {words} ({code})"
    return _judged(text, f"{told.code} {told.words}", told.status or _likely_status(told), None)


def _likely_status(told: ReplyError) -> int:
    """Return the HTTP status of an error without one, by its code, or by its words if the code is only a number."""
    codes = [code for code in told.code.split() if code.lower() not in _VAGUE]
    hint = told.code if any(character.isalpha() for code in codes for character in code) else told.words
    if _QUOTA.search(f"{told.code} {told.words}"):
        return _UNPAID
    if _LIMITED.search(hint):
        return _TOO_MANY
    is_own_number = any(code.isdigit() for code in codes)  # an endpoint's own: it may pass
    return _SERVER_ERRORS if is_own_number or _OVERLOADED.search(hint) else _BAD_REQUEST


def _judged(text: str, words: str, status: int, wait: float | None) -> RetryableError:
    """Classify a status and the text beside it; `words` are searched, and the text is shown."""
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
