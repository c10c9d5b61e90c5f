"""Serve LLM's OpenAI ingress, closed: keys, limits, no foreign web pages, and the student's own routes alone."""

import functools
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from ray.exceptions import RayTaskError
from ray.serve.llm.ingress import OpenAiIngress
from starlette.middleware.cors import CORSMiddleware

from cgd_ray.config.serving import Access
from serving.guard import Guard, OpenAIErrors
from serving.keys import Keys

_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model:path}", "/openapi.json"}


class _Body(Protocol):
    model: str | None


_Endpoint = Callable[[OpenAiIngress, _Body, Request], Awaitable[Response]]


# What vLLM raises, and calls a server's error, where a message lacks its role or a part its type.
_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def _checked(method: _Endpoint) -> _Endpoint:
    """Ray takes `student:x` for an adapter of the student's, and fails where there are none."""

    @functools.wraps(method)  # whose signature FastAPI reads
    async def checked(self: OpenAiIngress, body: _Body, request: Request) -> Response:
        known = [card.id for card in (await self.models()).data]
        if body.model is not None and body.model not in known:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no model {body.model!r} here, only {', '.join(known)}")
        try:
            return await method(self, body, request)
        except RayTaskError as error:
            if not isinstance(error.cause, _UNREADABLE):
                raise
            text = f"the request cannot be read: {type(error.cause).__name__}: {error.cause}"
            raise HTTPException(HTTPStatus.BAD_REQUEST, text) from error

    return checked


class ClosedIngress(OpenAiIngress):
    """Lets through who has a key; see `Access`."""

    chat = _checked(OpenAiIngress.chat)
    completions = _checked(OpenAiIngress.completions)

    def __init__(self, *, access: dict[str, object], **given: object) -> None:
        super().__init__(**given)
        self._access = Access.model_validate(access)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray's application with what stands before it; Serve calls it once in each replica.

        Raises:
            ConfigError: the file with the keys cannot be read.
        """
        app: FastAPI = self.app
        # Ray's own lets every web page ask, with the cookies of whoever looks at it.
        app.user_middleware = [each for each in app.user_middleware if not _is_cors(each.cls)]
        app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") in _PATHS]
        access = self._access
        keys = None if access.no_key else Keys(access.key_digests, access.keys_file)
        app.add_middleware(Guard, keys=keys, max_body_bytes=access.max_body_bytes)
        app.add_middleware(OpenAIErrors)
        if access.allowed_origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=access.allowed_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
            )
        return app


def _is_cors(middleware: object) -> bool:
    return isinstance(middleware, type) and issubclass(middleware, CORSMiddleware)
