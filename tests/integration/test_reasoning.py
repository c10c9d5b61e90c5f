"""vLLM's reasoning parsers on completions with finished and unfinished thinking; the tokenizer is a real model's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from cgd_ray.config.run import StorageSection
from cgd_ray.inference.base import Completion, Decoding, Request
from cgd_ray.inference.vllm.engine import VllmEngine
from cgd_ray.inference.vllm.options import VllmOptions
from cgd_ray.prompts.conversation import Turn


@pytest.fixture(scope="module", params=["deepseek_r1", "qwen3"])
def engine(request: pytest.FixtureRequest, teacher_dir: Path) -> VllmEngine:
    from vllm.reasoning import ReasoningParserManager

    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    made = VllmEngine(VllmOptions(), "m", None, StorageSection(), cpus=1, gpus=0)
    made._tokenizer = tokenizer
    made._parser = ReasoningParserManager.get_reasoning_parser(request.param)(tokenizer)
    made._ends = made._turn_ends()
    assert made._ends == {tokenizer.eos_token_id}
    return made


def complete(engine: VllmEngine, text: str, finish_reason: str = "stop", opening: str = "") -> Completion:
    """As vLLM returns it: its tokens include the one that ends the turn, its text does not."""
    ids = engine._tokenizer.encode(text) + ([engine._tokenizer.eos_token_id] if finish_reason == "stop" else [])
    answer = SimpleNamespace(text=text, token_ids=ids, finish_reason=finish_reason)
    output: Any = SimpleNamespace(outputs=[answer], prompt_token_ids=[1, 2], num_cached_tokens=0)
    return engine._completion(output, engine._tokenizer.encode(opening))


def test_thinking_is_cut_off(engine: VllmEngine) -> None:
    made = complete(engine, "<think>\n2 and 2, hmm.\n</think>\n\nIt is 4.")
    assert (made.text, made.truncated) == ("It is 4.", False)
    assert made.completion_tokens > 8


@pytest.mark.parametrize(("text", "reason"), [("<think>\n2 and 2, hmm.", "length"), ("<think>\n2 and 2.", "stop")])
def test_unfinished_thinking_is_truncated(engine: VllmEngine, text: str, reason: str) -> None:
    assert complete(engine, text, reason).truncated


def test_an_answer_that_was_cut_off_is_truncated(engine: VllmEngine) -> None:
    assert complete(engine, "<think>\nhmm\n</think>\n\nIt is", "length").truncated


def test_a_template_that_ended_the_thinking_is_believed(engine: VllmEngine) -> None:
    made = complete(engine, "It is 4.", opening="<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert (made.text, made.truncated) == ("It is 4.", False)


def test_a_template_that_began_the_thinking_wants_its_end(engine: VllmEngine) -> None:
    opening = "<|im_start|>assistant\n<think>\n"
    assert complete(engine, "2 and 2, hmm.", opening=opening).truncated
    made = complete(engine, "2 and 2.\n</think>\n\nIt is 4.", opening=opening)
    assert (made.text, made.truncated) == ("It is 4.", False)


def test_a_model_may_do_without(engine: VllmEngine) -> None:
    made = complete(engine, "It is 4.", opening="<|im_start|>assistant\n")
    assert (made.text, made.truncated) == ("It is 4.", False)


def test_nothing_behind_the_thinking_is_empty(engine: VllmEngine) -> None:
    assert complete(engine, "<think>\nhmm\n</think>").text == ""


@pytest.mark.parametrize(
    ("arguments", "opening"),
    [
        ({"enable_thinking": False}, "<think>\n</think>"),
        ({"enable_thinking": True}, "<think>\n"),
        ({}, "assistant\n"),
    ],
)
def test_the_generation_prompt_is_that_of_the_request(
    engine: VllmEngine, arguments: dict[str, Any], opening: str
) -> None:
    engine._tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined %}<think>\n"
        "{% if not enable_thinking %}\n</think>{% endif %}{% endif %}{% endif %}"
    )
    turns = (Turn("user", "a"), Turn("assistant", "<think>\nb</think>"), Turn("user", "c"))
    _, tokens = engine._encode(Request("k", "k", turns, Decoding(9, 0.0, 1.0, 0, arguments)))
    assert engine._tokenizer.decode(tokens).endswith(opening)
    assert engine._tokenizer.decode(tokens).startswith("<|im_start|>assistant")
