"""Thinking in texts: what is cut off, what is noticed, and what only speaks of it."""

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
    ],
)
def test_other_texts_hold_none(text: str) -> None:
    assert thinking_in(text, "What is 2 + 2?") is None


def test_a_conversation_about_tags_may_be_answered_with_them() -> None:
    assert thinking_in("Write </think> behind it.", "How do I end <think> with </think>?") is None
    assert thinking_in("Write </think> behind it.", "What is 2 + 2?") == "</think>"


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
