"""What vLLM's own errors mean for a row. The engine is a stand-in that raises them: the real one has to be broken."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from cgd_ray.config.run import StorageSection
from cgd_ray.inference.base import Completion, CompletionError, Decoding, EngineDiedError, Request
from cgd_ray.inference.vllm.engine import VllmEngine
from cgd_ray.inference.vllm.options import VllmOptions

REQUEST = Request("draft-a", "a", (), Decoding(8, 0.0, 1.0, 0))


def made_by(raised: Exception | None, finish_reason: str = "stop") -> Completion:
    class Engine:
        async def generate(self, *_: Any) -> AsyncIterator[Any]:
            if raised is not None:
                raise raised
            answer = SimpleNamespace(text="4", token_ids=[1], finish_reason=finish_reason)
            yield SimpleNamespace(outputs=[answer], prompt_token_ids=[1], num_cached_tokens=0)

    engine = VllmEngine(VllmOptions(), "m", None, StorageSection(), cpus=1, gpus=0)
    made = asyncio.run(engine._generate(Engine(), [1], REQUEST))  # type: ignore[arg-type]
    return engine._completion(made, [])


def failed_inside() -> Exception:
    error = EngineGenerateError()
    error.__cause__ = RuntimeError("index out of range")
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (VLLMValidationError("token id 99 is out of the vocabulary"), "VLLMValidationError: token id 99"),
        (failed_inside(), "RuntimeError: index out of range"),
    ],
)
def test_a_row_that_vllm_refuses_or_trips_over_fails_alone(error: Exception, text: str) -> None:
    with pytest.raises(CompletionError, match=text):
        made_by(error)


def test_a_dead_engine_is_no_failed_row() -> None:
    with pytest.raises(EngineDiedError):
        made_by(EngineDeadError())


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_what_did_not_end_by_itself_is_tried_again_by_the_next_run(reason: str) -> None:
    with pytest.raises(CompletionError, match=f"ended with '{reason}'"):
        made_by(None, reason)


@pytest.mark.parametrize(("reason", "truncated"), [("stop", False), ("length", True), ("repetition", True)])
def test_what_would_end_so_again_is_a_result(reason: str, *, truncated: bool) -> None:
    assert made_by(None, reason).truncated is truncated
