"""Ray Serve LLM 2.60: the base class of callbacks that run before an engine starts."""

from ray.llm._internal.common.callbacks.base import CallbackBase

__all__ = ["CallbackBase"]
