"""A teacher behind an OpenAI-compatible HTTP endpoint."""

import asyncio
import os

import openai
from aiolimiter import AsyncLimiter
from openai.types.chat import ChatCompletionUserMessageParam

from cgd_ray.config.engine import TeacherOpenAI
from cgd_ray.engines.base import CeilingError, Completion, CompletionError, Request
from cgd_ray.errors import CgdError, ConfigError


class OpenAIEngine:
    """Chat completions through the `openai` client, which retries 408, 409, 429 and 5xx with backoff."""

    def __init__(self, options: TeacherOpenAI) -> None:
        self._options = options
        self._slots = asyncio.Semaphore(options.concurrency)
        rate = options.requests_per_minute
        # One request per slot of time, not a minute's worth at once: endpoints count in shorter windows than a minute.
        self._limiter = AsyncLimiter(1, 60 / rate) if rate else None
        self._client: openai.AsyncOpenAI | None = None
        self._spent = 0.0

    async def start(self) -> None:
        """Make the client; whether the endpoint answers was checked before the run (`check_endpoint`)."""
        self._client = make_client(self._options)

    async def complete(self, request: Request) -> Completion:
        """One chat completion; see `Engine`."""
        client, options, decoding = self._client, self._options, request.decoding
        if client is None:
            raise CgdError("the openai engine was not started")
        self._check_ceiling()
        body = dict(options.extra_body)
        if decoding.chat_template_kwargs:
            body["chat_template_kwargs"] = decoding.chat_template_kwargs
        async with self._slots:
            if self._limiter:
                await self._limiter.acquire()
            self._check_ceiling()
            try:
                answer = await client.chat.completions.create(
                    model=options.model,
                    messages=[turn.as_message() for turn in request.turns],  # type: ignore[misc]
                    max_tokens=decoding.max_tokens,
                    temperature=decoding.temperature,
                    top_p=decoding.top_p,
                    seed=decoding.seed,
                    extra_body=body or None,
                )
            except openai.OpenAIError as error:
                raise CompletionError(f"{type(error).__name__}: {error}") from error
        return self._account(answer)

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            await self._client.close()

    def _check_ceiling(self) -> None:
        ceiling = self._options.spend_ceiling
        if ceiling is not None and self._spent >= ceiling:
            raise CeilingError(f"teacher.engine.spend_ceiling {ceiling} is reached ({self._spent:.4f} spent)")

    def _account(self, answer: "openai.types.chat.ChatCompletion") -> Completion:
        if not answer.choices or answer.usage is None:
            raise CompletionError("the endpoint's answer has no choices or no usage")
        choice, usage = answer.choices[0], answer.usage
        self._spent += usage.prompt_tokens * self._options.price_per_million_prompt_tokens / 1e6
        self._spent += usage.completion_tokens * self._options.price_per_million_completion_tokens / 1e6
        details = usage.prompt_tokens_details
        return Completion(
            text=choice.message.content or "",
            truncated=choice.finish_reason != "stop",  # also what a content filter cut off
            finish_reason=choice.finish_reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=details.cached_tokens if details else None,
        )


def make_client(options: TeacherOpenAI) -> openai.AsyncOpenAI:
    """The client with its key from the environment.

    Raises:
        ConfigError: the variable that should hold the key is not set.
    """
    return openai.AsyncOpenAI(
        base_url=options.base_url,
        api_key=api_key(options),
        max_retries=options.max_retries,
        timeout=options.timeout_s,
    )


def api_key(options: TeacherOpenAI) -> str:
    """The key; a placeholder where the endpoint wants none (the client refuses an empty one)."""
    if options.api_key_env is None:
        return "none"
    key = os.environ.get(options.api_key_env)
    if not key:
        raise ConfigError(
            f"teacher.engine.api_key_env: the environment variable {options.api_key_env} is not set; "
            "set it, or use null for an endpoint without keys"
        )
    return key


def check_endpoint(options: TeacherOpenAI) -> None:
    """Ask the endpoint for its models, and one that is not among them for one token.

    Raises:
        ConfigError: it cannot be reached, refuses the key, or has no such model.
    """
    client = openai.OpenAI(base_url=options.base_url, api_key=api_key(options), max_retries=1, timeout=30)
    where = f"teacher.engine.base_url {options.base_url}"
    try:
        names = _listed_models(client)
        if options.model not in names:
            # Gateways take names that they do not list, and keys that may not list: being asked decides.
            hello: ChatCompletionUserMessageParam = {"role": "user", "content": "Hello"}
            client.chat.completions.create(model=options.model, messages=[hello], max_tokens=1)
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        mend = f"the key in {options.api_key_env} is refused" if options.api_key_env else "it wants a key (api_key_env)"
        raise ConfigError(f"{where}: {mend}") from error
    except openai.NotFoundError as error:
        known = f"it has {', '.join(names[:10])}" if names else "does teacher.engine.base_url end in /v1?"
        raise ConfigError(f"teacher.engine.model {options.model}: not known at {options.base_url}; {known}") from error
    except openai.APIConnectionError as error:
        raise ConfigError(f"{where}: cannot be reached ({error.__cause__ or error}); is the server up?") from error
    except openai.APIStatusError:
        return  # it answers, and does not say that there is no such model
    finally:
        client.close()


def _listed_models(client: openai.OpenAI) -> list[str]:
    """Names of the endpoint's models; none where it does not give such a list."""
    try:
        return [model.id for model in client.models.list()]
    except (openai.APIStatusError, AttributeError):
        return []
