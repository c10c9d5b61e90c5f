"""The `openai` client's own transport: httpx, or what replaced it."""

import importlib

import openai

_transport = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__)

UNSENT: tuple[type[Exception], ...] = tuple(
    getattr(_transport, name)
    for name in ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
)
"""Errors before a request has left."""
