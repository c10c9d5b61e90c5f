"""Guard of the served student: access control, request size limits, and errors in OpenAI's format."""

import asyncio
import json
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cgd_ray.config.serving import is_loopback
from cgd_ray.serving.keys import Keys

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_PASSED = {b"accept", b"content-type", b"content-length", b"host", b"origin", b"user-agent", b"x-request-id"}
"""Headers that are forwarded: neither the key, nor those with which a client could control Serve and vLLM."""
_OURS = ("x-request-disconnect-disabled", "x-request-timeout-seconds")
"""Headers with which a client could make Serve's proxy keep a request after a disconnect, and set its timeout."""
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_BODY_SECONDS = 60.0
_CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded"}


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error in the format of OpenAI's clients."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": _CODES.get(status)}
    return JSONResponse({"error": error}, status, headers)


class Guard:
    """Forwards requests that have a valid key and a body within the size limit.

    Without keys, only programs on this machine may send requests, addressed to a loopback name. Requests that a proxy
    forwards or that belong to a web page are refused.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, max_body_bytes: int) -> None:
        self._app = app
        self._keys = keys
        self._most = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # the student serves none
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := self._refusal(scope):
            await refusal(scope, receive, send)
        else:
            passed = [(name, value) for name, value in scope["headers"] if name.lower() in _PASSED]
            await self._with_body({**scope, "headers": passed}, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        refusal = self._stranger(scope, headers)
        if refusal is None and (odd := [name for name in _OURS if name in headers]):
            return error_response(400, f"the header {odd[0]} is not taken here")
        return refusal

    def _stranger(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if self._keys is None:
            client = scope.get("client") or ("",)
            is_here = is_loopback(client[0]) and is_loopback(_name(headers.get("host", "")))
            is_page = headers.get("sec-fetch-site", "none") not in ("none", "same-origin") or "origin" in headers
            if is_here and not is_page and not any(name in headers for name in _FORWARDED):
                return None
            return error_response(403, "served without a key, for programs of this machine alone")
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() == "bearer" and self._keys.are_good(key.encode("latin-1").strip(b" \t")):
            return None
        text = "the key is not known" if key else "a key is needed: Authorization: Bearer KEY"
        return error_response(401, text, {"WWW-Authenticate": "Bearer"})

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body first: nothing of an oversized one reaches the application."""
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                content = await self._read(scope, receive)
        except TimeoutError:
            await error_response(408, f"the body did not come within {_BODY_SECONDS:g} s")(scope, receive, send)
            return
        if content is None:  # the client disconnected
            return
        if len(content) > self._most:
            await error_response(413, f"the body is larger than {self._most} bytes")(scope, receive, send)
            return
        body: Message | None = {"type": "http.request", "body": content, "more_body": False}

        async def replay() -> Message:
            nonlocal body
            first, body = body, None
            return first if first is not None else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body, or more bytes than allowed if it is too large; None if the client disconnected."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._most:
            return bytes(self._most + 1)
        content = bytearray()
        while len(content) <= self._most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            content += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return bytes(content)


def _name(host: str) -> str:
    """Return the header `Host` without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class OpenAIErrors:
    """Gives every error response OpenAI's format, whether from the router, Serve, Serve LLM or the engine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, and return its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def rewritten(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await _translated(start, bytes(body))(scope, receive, send)

        await self._app(scope, receive, rewritten)


def _translated(start: Message, body: bytes) -> JSONResponse:
    response = error_response(start["status"], _message(body) or "no further information")
    kept = [(name, value) for name, value in start["headers"] if not name.lower().startswith(b"content-")]
    response.raw_headers += kept
    return response


def _message(body: bytes) -> str:
    """Return an error's text once: Serve LLM repeats it three times."""
    try:
        content: object = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    for name in ("error", "detail", "message"):
        if isinstance(content, dict) and name in content:
            content = content[name]
    text = content if isinstance(content, str) else json.dumps(content)
    return text.removeprefix("Message: ").partition(", Internal exception: ")[0]
