"""The `openai` client's own transport: httpx or its replacement."""

import importlib

import openai

_transport = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__)

UNSENT: tuple[type[Exception], ...] = tuple(
    getattr(_transport, name)
    for name in ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
)
"""Errors raised before a request is sent."""

INVALID_URL: type[Exception] = _transport.InvalidURL
"""Error of a URL that cannot be read."""
