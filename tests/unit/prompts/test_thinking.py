"""Thinking in texts: what is cut off, what is noticed, and what only speaks of it."""

import ast
import importlib.util
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgd_ray.prompts.thinking import TAGS, opened_tag, thinking_in, without_thinking

THINK = ("<think>", "</think>")


@pytest.mark.parametrize(("start", "end"), TAGS.items())
def test_the_tags_of_all_formats_are_noticed(start: str, end: str) -> None:
    for text in (f"{start}hm{end}\n\nIt is 4.", f"\n {start}hm", f"hm{end}It is 4."):
        assert thinking_in(text, "What is 2 + 2?") is not None
    assert opened_tag(f"assistant\n{start}\n") == end
    assert opened_tag(f"assistant\n{start}\n\n{end}\n\n") is None


@pytest.mark.parametrize(
    "text",
    [
        "It is 4.",
        "I think <thinking about it>",
        "The tag <think> begins it.",
        "an analysis of the final",
        "",
        "[THINKING]",
        "<thinking about it> is no tag",
        "<thinker>x</thinker>",
        "It is <b>4</b>.\n<i>sure</i>",
        "<soap:Reason>late</soap:Reason>",
        "I thought\nof it. Here is my response: 4.",
    ],
)
def test_other_texts_hold_none(text: str) -> None:
    assert thinking_in(text, "What is 2 + 2?") is None


def test_a_conversation_about_tags_may_be_answered_with_them() -> None:
    assert thinking_in("Write </think> behind it.", "How do I end <think> with </think>?") is None
    assert thinking_in("Write </think> behind it.", "What is 2 + 2?") == "</think>"


@pytest.mark.parametrize(
    "text",
    [
        "<THINK>hm</THINK>4",
        "<Think>hm",
        "<Thinking>hm",
        "hm</Thinking>4",
        '<think type="x">hm',
        "<think  type = 'x' depth=3 >hm",
        "hm</think >4",
        "hm</ think>4",
        "< think >hm",
        "<|channel>thought\nhm<channel|>4",
        "thought\nhm 4",
        "<mm:think>hm",
        "hm</mm:think>4",
        "<think:opensource>hm",
        "hm</think:opensource>4",
        "<|open|> think <|sep|>hm",
        "Here is my thought process: hm Here is my response: 4",
        "Here's my thought process:\nhm",
        "Sure. <think>hm",
        "Sure!\n\n<think>\nhm",
        "[think]hm",
        "x" * 5000 + "\n<think>hm",
    ],
)
def test_other_spellings_are_noticed(text: str) -> None:
    assert thinking_in(text, "What is 2 + 2?") is not None


def _tags_in_vllm() -> list[str]:
    """Tags of thinking that the source of vLLM's parsers names; reading it starts no engine."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return []
    tag = re.compile(r"[<\[◁][^\s<>]*(think|thought|reason|content_thinking)[^\s<>]*[>\]▷](<\|\w+\|>)?", re.IGNORECASE)
    found = set[str]()
    for folder in ("reasoning", "parser"):
        for file in sorted((Path(spec.origin).parent / folder).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = node.value.strip()
                    if tag.fullmatch(text) or re.fullmatch(r"<\|(open|close)\|>think<\|sep\|>|<\|?channel\|?>", text):
                        found.add(text)
    return sorted(found - {"<|channel|>"})


def test_the_tags_of_vllms_parsers_are_noticed() -> None:
    tags = _tags_in_vllm()
    if not tags:
        pytest.skip("vLLM is not installed")
    assert {"<think>", "</think>", "<mm:think>", "<|channel>", "<channel|>", "<|open|>think<|sep|>"} <= set(tags)
    for tag in tags:
        assert thinking_in(f"{tag}hm", "What is 2 + 2?") is not None, tag


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("assistant\n<Think>\n", "</Think>"),
        ("<|turn>model\n<|channel>thought\n", "<channel|>"),
        ("<|turn>model\n<|channel>thought\n<channel|>", None),
        ("assistant\n<think:high>", "</think:high>"),
        ("assistant\n<THINK>\n</think>", None),
    ],
)
def test_a_prompt_opens_other_spellings(prompt: str, end: str | None) -> None:
    assert opened_tag(prompt) == end


def test_a_conversation_may_hold_a_tag_in_another_spelling() -> None:
    assert thinking_in("It is </Think>.", "How do I end <think> with </think >?") is None


def test_long_texts_take_linear_time() -> None:
    started = time.process_time()
    for text in ("<think ", "<think a=", "<", "\n<think>", "< ", "a_" * 40 + "<"):
        thinking_in(text * 20000, text * 20000)
    assert time.process_time() - started < 10


def test_channels_without_their_special_tokens_are_noticed() -> None:
    assert thinking_in("analysisWe need 2 + 2.assistantfinalIt is 4.", "x") == "analysis...assistantfinal"


@pytest.mark.parametrize(
    ("text", "answer", "has_ended"),
    [
        ("<think>hm</think>\n\n4", "4", True),
        ("hm</think>4", "4", True),
        ("  <think>hm", "", False),
        ("4", "4", True),
        (" 4 \n", " 4 \n", True),
        ("<think>hm</think>", "", True),
        ("<THINK>hm</Think >4", "4", True),
        ('<think type="x">hm', "", False),
        ("Sure. <think>hm", "", False),
        ("Sure. <think>hm</think>4", "4", True),
        ("The tag <think> begins it.", "The tag <think> begins it.", True),
        ("<think>a</think>b</think>c", "b</think>c", True),
    ],
)
def test_thinking_is_cut_off(text: str, answer: str, *, has_ended: bool) -> None:
    assert without_thinking(text, THINK) == (answer, has_ended)


@given(st.text(), st.text())
def test_no_text_breaks_it(text: str, conversation: str) -> None:
    thinking_in(text, conversation)
    opened_tag(text)
    answer, _ = without_thinking(text, THINK)
    assert answer in text


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<think>a</think><think>", "</think>"),
        ("<think>a</think>[THINK]", "[/THINK]"),
        ("[THINK]<think>a</think>", None),
        ("assistant\n", None),
    ],
)
def test_the_last_thinking_that_began_counts(text: str, tag: str | None) -> None:
    assert opened_tag(text) == tag
