"""A teacher behind an OpenAI-compatible HTTP endpoint."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace

import openai
from aiolimiter import AsyncLimiter
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam, ChatCompletionUserMessageParam

from cgd_ray.compat.openai import INVALID_URL
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.inference.base import CeilingError, Completion, CompletionError, Request
from cgd_ray.inference.openai.budget import Reservation, SpendBudget
from cgd_ray.inference.openai.concurrency import AimdConcurrencyLimiter
from cgd_ray.inference.openai.errors import RetryableError, backoff, retryable_error, retryable_reply
from cgd_ray.inference.openai.options import OpenAIOptions
from cgd_ray.inference.openai.replies import completion_of, error_in, is_completion, without_odd_usage
from cgd_ray.prompts.conversation import Turn
from cgd_ray.redaction import one_line, read_secret

_LONGEST_QUOTE = 200  # characters shown of an answer that is no completion
_MEND_URL = "Fix: correct the URL (does it end in /v1?), or ask the endpoint's operator"
_UNREADABLE = (ValueError, RecursionError, AttributeError, TypeError)
"""What the client raises for a body that is not JSON, not UTF-8, nested too deep, or of another shape."""
_OWN_REFUSALS = 3  # maximum refusals of a row per allowed try, whatever rows were served meanwhile


class OpenAIEngine:
    """Makes chat completions through the `openai` client.

    After a refusal (429, or 503 with Retry-After), no request is sent during the Retry-After window; see
    `AimdConcurrencyLimiter`. A refusal counts against a row's tries only if no other request was served meanwhile.
    """

    def __init__(self, options: OpenAIOptions, spent: float = 0.0) -> None:
        self._options = options
        self._concurrency = AimdConcurrencyLimiter(options.concurrency)
        self._budget = SpendBudget(options, spent)
        self._ages = itertools.count()
        self._served = 0
        self._refusals = 0  # in a row
        rate = options.requests_per_minute
        # One request per time slot, not a minute's worth at once: endpoints count in windows shorter than a minute.
        self._limiter = AsyncLimiter(1, 60 / rate) if rate else None
        self._client: openai.AsyncOpenAI | None = None

    async def start(self) -> None:
        """Create the client; `check_endpoint` has checked before the run that the endpoint answers."""
        self._client = make_client(self._options)

    async def complete(self, request: Request) -> Completion:
        """Return one chat completion; see `Engine`."""
        age, tries, refusals = next(self._ages), 0, 0
        while True:
            answer = await self._try(request, age)
            if isinstance(answer, Completion):
                return answer
            tries += answer.counts
            refusals += answer.is_refusal
            if tries > self._options.max_retries or refusals > _OWN_REFUSALS * max(1, self._options.max_retries):
                raise CompletionError(answer.text)
            if not answer.is_refusal:
                await asyncio.sleep(backoff(tries))
            elif tries > 1:  # the refusals may concern this row: let other rows go first
                age = next(self._ages)

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            await self._client.close()

    async def _try(self, request: Request, age: int) -> Completion | RetryableError:
        async with self._budget.open(request) as reservation:
            if self._limiter:
                await self._limiter.acquire()
            # Last, so that nothing is sent during the Retry-After window.
            async with self._concurrency.passage(age) as sent:
                self._budget.require_money()
                served = self._served
                answer = await self._ask_safely(request, reservation, sent)
                if isinstance(answer, RetryableError) and answer.is_refusal:
                    return replace(answer, counts=served == self._served)
                return answer

    async def _ask_safely(self, request: Request, reservation: Reservation, sent: float) -> Completion | RetryableError:
        """Ask once; a reply that raises any other error fails its row alone, and is charged the maximum cost."""
        try:
            return await self._ask(request, reservation, sent)
        except (CgdError, CompletionError, CeilingError):
            raise
        except Exception as error:
            reservation.failed(error)
            raise CompletionError(
                f"the endpoint's answer cannot be read: {type(error).__name__}: {one_line(error, _LONGEST_QUOTE)}"
            ) from error

    async def _ask(self, request: Request, reservation: Reservation, sent: float) -> Completion | RetryableError:
        try:
            # The client's own timeout restarts with each byte, such as keep-alive bytes.
            async with asyncio.timeout(self._options.timeout_s):
                answer = await self._send(request)
        except (openai.OpenAIError, ValueError, TimeoutError, RecursionError) as error:  # truncated or deep JSON
            reservation.failed(error)
            return self._judge(self._trouble(error), sent)
        reservation.answered(answer)
        if not is_completion(answer):
            text = f"no completion but {one_line(answer, _LONGEST_QUOTE)!r}"
            return RetryableError(text, is_refusal=False, wait=None)
        if told := error_in(answer):
            return self._judge(retryable_reply(told), sent)
        self._refusals = 0
        self._served += 1
        self._concurrency.served(sent)
        return completion_of(answer, request.decoding.max_tokens, self._options.reasoning_tags)

    def _trouble(self, error: Exception) -> RetryableError:
        if isinstance(error, TimeoutError):
            text = f"no answer within {self._options.timeout_s:g} s (teacher.engine.timeout_s)"
            return RetryableError(text, is_refusal=False, wait=None)
        return retryable_error(error)

    def _judge(self, trouble: RetryableError, sent: float) -> RetryableError:
        if trouble.wait is not None and trouble.wait > self._options.max_wait_s:
            raise CeilingError(
                f"the teacher's endpoint asks for a pause of {trouble.wait:.0f} s, longer than "
                f"teacher.engine.max_wait_s {self._options.max_wait_s:g} ({trouble.text})"
            )
        if trouble.is_refusal:
            self._refusals += self._concurrency.is_news(sent)
            self._concurrency.refused(sent, max(trouble.wait or 0.0, backoff(max(1, self._refusals))))
        return trouble

    async def _send(self, request: Request) -> ChatCompletion:
        client, options, decoding = self._client, self._options, request.decoding
        if client is None:
            raise CgdError("the openai engine was not started")
        body = dict(options.extra_body)
        if decoding.chat_template_kwargs:
            body["chat_template_kwargs"] = decoding.chat_template_kwargs
        sent: dict[str, float] = {
            options.max_tokens_field: decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": decoding.seed,
        }
        body |= {name: value for name, value in sent.items() if name not in options.omit}
        messages = [chat_message(turn) for turn in request.turns]
        reply = await client.chat.completions.with_raw_response.create(
            model=options.model, messages=messages, extra_body=body
        )
        return without_odd_usage(reply.parse(), reply.http_response.json)


def chat_message(turn: Turn) -> ChatCompletionMessageParam:
    """Convert a turn to the client's form."""
    match turn.role:
        case "system":
            return {"role": "system", "content": turn.content}
        case "user":
            return {"role": "user", "content": turn.content}
        case "assistant":
            return {"role": "assistant", "content": turn.content}


def make_client(options: OpenAIOptions) -> openai.AsyncOpenAI:
    """Create the client with its key from the environment.

    Raises:
        ConfigError: the key's variable is not set, or does not hold a key; or the URL cannot be read.
    """
    with _readable_url(options):
        return openai.AsyncOpenAI(
            base_url=options.base_url,
            api_key=api_key(options),
            max_retries=0,  # the engine retries, and coordinates the tries of all rows
            timeout=options.timeout_s,
        )


@contextlib.contextmanager
def _readable_url(options: OpenAIOptions) -> Iterator[None]:
    try:
        yield
    except INVALID_URL as error:
        raise ConfigError(
            f"teacher.engine.base_url {options.base_url!r}: not a URL ({error}). "
            "Fix: write it as https://HOST/v1 or http://HOST:PORT/v1"
        ) from error


def api_key(options: OpenAIOptions) -> str:
    """Return the key, or a placeholder if the endpoint needs none (the client refuses an empty key)."""
    if options.api_key_env is None:
        return "none"
    try:
        key = read_secret(options.api_key_env, "teacher.engine.api_key_env")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if key is None:
        raise ConfigError(
            f"teacher.engine.api_key_env: the environment variable {options.api_key_env} is not set. "
            "Fix: set it, or use null for an endpoint without keys"
        )
    return key


def check_endpoint(options: OpenAIOptions) -> None:
    """List the endpoint's models; if the model is not listed, request one token from it.

    Raises:
        ConfigError: the endpoint cannot be reached, refuses the key, does not have the model, or answers otherwise than
            an OpenAI-compatible one; or the URL cannot be read.
    """
    where = f"teacher.engine.base_url {options.base_url}"
    names: list[str] = []
    with _readable_url(options), _client_for_checks(options) as client:
        try:
            names = _listed_models(client)
            if options.model not in names:
                # Gateways accept unlisted names, and keys without permission to list: only a request decides.
                _require_answer(client, options.model, where)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            key = options.api_key_env
            mend = f"the key in {key} is refused" if key else "it needs a key (api_key_env)"
            raise ConfigError(f"{where}: {mend}") from error
        except openai.NotFoundError as error:
            known = f"it has {', '.join(names[:10])}" if names else "does teacher.engine.base_url end in /v1?"
            raise ConfigError(
                f"teacher.engine.model {options.model}: not known at {options.base_url}; {known}"
            ) from error
        except openai.APIConnectionError as error:
            raise ConfigError(
                f"{where}: cannot be reached ({error.__cause__ or error}). Fix: start the server, or correct the URL"
            ) from error
        except openai.APIStatusError:
            return  # it answers, and does not report a missing model


def _client_for_checks(options: OpenAIOptions) -> openai.OpenAI:
    return openai.OpenAI(base_url=options.base_url, api_key=api_key(options), max_retries=1, timeout=30)


def _listed_models(client: openai.OpenAI) -> list[str]:
    """Return the names of the endpoint's models; empty if it does not provide such a list."""
    try:
        return [str(model.id) for model in client.models.list()]
    except (openai.APIStatusError, openai.APIResponseValidationError, *_UNREADABLE):
        return []


def _require_answer(client: openai.OpenAI, model: str, where: str) -> None:
    """Request one token.

    Raises:
        ConfigError: the answer is no JSON object.
    """
    hello: ChatCompletionUserMessageParam = {"role": "user", "content": "Hello"}
    try:
        answer: object = client.chat.completions.create(model=model, messages=[hello], max_tokens=1)
    except _UNREADABLE as error:
        found = f"{type(error).__name__}: {one_line(error, _LONGEST_QUOTE)}"
        raise ConfigError(f"{where}: a request is not answered with JSON ({found}). {_MEND_URL}") from error
    if not isinstance(answer, ChatCompletion):
        found = repr(one_line(answer, _LONGEST_QUOTE))
        raise ConfigError(f"{where}: a request is not answered with a completion ({found}). {_MEND_URL}")
