"""vLLM's reasoning parsers on completions with finished and unfinished thinking; the tokenizer is a real model's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from cgd_ray.config.engine import VllmOptions
from cgd_ray.config.run import StorageSection
from cgd_ray.engines.base import Completion
from cgd_ray.engines.vllm import VllmEngine


@pytest.fixture(scope="module", params=["deepseek_r1", "qwen3"])
def engine(request: pytest.FixtureRequest, teacher_dir: Path) -> VllmEngine:
    from vllm.reasoning import ReasoningParserManager

    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    made = VllmEngine(VllmOptions(), "m", None, StorageSection(), cpus=1, gpus=0)
    made._tokenizer = tokenizer
    made._parser = ReasoningParserManager.get_reasoning_parser(request.param)(tokenizer)
    return made


def complete(engine: VllmEngine, text: str, finish_reason: str = "stop") -> Completion:
    ids = engine._tokenizer.encode(text)
    answer = SimpleNamespace(text=text, token_ids=ids, finish_reason=finish_reason)
    output: Any = SimpleNamespace(outputs=[answer], prompt_token_ids=[1, 2], num_cached_tokens=0)
    return engine._completion(output)


def test_thinking_is_cut_off(engine: VllmEngine) -> None:
    made = complete(engine, "<think>\n2 and 2, hmm.\n</think>\n\nIt is 4.")
    assert (made.text, made.truncated) == ("It is 4.", False)
    assert made.completion_tokens > 8


@pytest.mark.parametrize(("text", "reason"), [("<think>\n2 and 2, hmm.", "length"), ("<think>\n2 and 2.", "stop")])
def test_unfinished_thinking_is_truncated(engine: VllmEngine, text: str, reason: str) -> None:
    assert complete(engine, text, reason).truncated


def test_an_answer_that_was_cut_off_is_truncated(engine: VllmEngine) -> None:
    assert complete(engine, "<think>\nhmm\n</think>\n\nIt is", "length").truncated
