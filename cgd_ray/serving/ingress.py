"""Serve LLM's OpenAI ingress with access control: keys, limits, no foreign web pages, only the student's routes."""

import functools
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Protocol

import structlog
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayTaskError
from ray.serve.llm.ingress import OpenAiIngress
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from cgd_ray.compat.vllm import failed_outside_engine
from cgd_ray.config.serving import Access
from cgd_ray.serving.guard import Guard, OpenAIErrors, error_response
from cgd_ray.serving.keys import Keys

log = structlog.get_logger(__name__)

_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model:path}", "/openapi.json"}


class _Body(Protocol):
    model: str | None
    n: int | None


_Endpoint = Callable[[OpenAiIngress, _Body, Request], Awaitable[Response]]


async def _unreadable(_: Request, error: Exception) -> JSONResponse:
    """Replace Ray's own handler, which echoes the request, and fails on and logs one that is not JSON."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": "unreadable"}
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
    return error_response(HTTPStatus.BAD_REQUEST, f"{place}: {first['msg']}")


def _checked(method: _Endpoint) -> _Endpoint:
    """Refuse requests on which Ray and vLLM fail.

    Ray treats `student:x` as an adapter of the student. One request may hold many prompts and ask for many answers to
    each: all of them count as one request.
    """

    @functools.wraps(method)  # FastAPI reads its signature
    async def checked(self: OpenAiIngress, body: _Body, request: Request) -> Response:
        known = [card.id for card in (await self.models()).data]
        if body.model is not None and body.model not in known:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no model {body.model!r} here, only {', '.join(known)}")
        answers = (body.n or 1) * _prompts_in(getattr(body, "prompt", None))
        if answers > self.most_answers:
            text = f"{answers} answers are asked for at once (n, prompt), and {self.most_answers} are the most"
            raise HTTPException(HTTPStatus.BAD_REQUEST, text)
        try:
            return await method(self, body, request)
        except RayTaskError as error:
            if not _is_the_requests_fault(error):
                raise
            kind = type(error.cause).__name__
            log.warning("vLLM cannot read a request", error=kind)
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"the request cannot be read: {kind}: {error.cause}") from None

    return checked


def _is_the_requests_fault(error: RayTaskError) -> bool:
    """Whether vLLM failed on the request and not in its engine.

    It reports a server error for a message without a role, or for a power of an absurd `length_penalty`.
    """
    return failed_outside_engine(str(error))  # the text holds the replica's traceback


def _prompts_in(prompt: object) -> int:
    """Count the prompts: a text or the ids of one are one prompt; a list of either is several."""
    is_several = isinstance(prompt, list) and len(prompt) > 0 and not isinstance(prompt[0], int)
    return len(prompt) if is_several and isinstance(prompt, list) else 1


class ClosedIngress(OpenAiIngress):
    """Admits only requests that `Access` allows."""

    chat = _checked(OpenAiIngress.chat)
    completions = _checked(OpenAiIngress.completions)

    def __init__(self, *, access: dict[str, object], most_answers: int, **given: object) -> None:
        super().__init__(**given)
        self.most_answers = most_answers
        self._access = Access.model_validate(access)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return Ray's application behind the guard; Serve calls it once in each replica.

        Raises:
            ConfigError: the file with the keys cannot be read.
        """
        app: FastAPI = self.app
        # Ray's own CORS middleware lets every web page send requests, with its visitor's cookies.
        app.user_middleware = [each for each in app.user_middleware if not _is_cors(each.cls)]
        app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") in _PATHS]
        app.add_exception_handler(RequestValidationError, _unreadable)
        access = self._access
        keys = None if access.no_key else Keys(access.key_digests, access.keys_file)
        app.add_middleware(Guard, keys=keys, max_body_bytes=access.max_body_bytes)
        app.add_middleware(OpenAIErrors)
        if access.allowed_origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=access.allowed_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],  # OpenAI's own client sends a dozen
                expose_headers=["retry-after"],
            )
        return app


def _is_cors(middleware: object) -> bool:
    return isinstance(middleware, type) and issubclass(middleware, CORSMiddleware)
