"""Thinking blocks before the answers of models: recognise their tags, and remove the blocks."""

import re

TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<reason>": "</reason>",
    "[THINK]": "[/THINK]",
    "[BEGIN OF THINKING]": "[END OF THINKING]",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
    "◁think▷": "◁/think▷",
}
"""Opening and closing tags of thinking in the chat formats of current models."""

_WITHOUT_TOKENS = re.compile(r"\s*analysis\S.*?assistantfinal\S", re.DOTALL)  # gpt-oss, decoded without special tokens


def without_thinking(text: str, tags: tuple[str, str]) -> tuple[str, bool]:
    """The text after the thinking, and whether the thinking ended; a text without thinking is unchanged."""
    start, end = tags
    before, found, behind = text.partition(end)
    if found:
        return behind.strip(), True
    if before.lstrip().startswith(start):
        return "", False
    return text, True


def thinking_in(text: str, conversation: str) -> str | None:
    """The tag that shows uncut thinking in a text; None if the conversation itself contains the tag.

    The opening tag counts only at the beginning, the closing one everywhere: chat templates may write the opening tag.
    """
    begins = text.lstrip()
    for start, end in TAGS.items():
        for tag, is_there in ((start, begins.startswith(start)), (end, end in text)):
            if is_there and tag not in conversation:
                return tag
    return "analysis...assistantfinal" if _WITHOUT_TOKENS.match(text) else None


def opened_tag(text: str) -> str | None:
    """The closing tag of the thinking that a text, such as a template's generation prompt, begins and does not end."""
    opened = [(text.rfind(start), start) for start in TAGS if start in text]
    if not opened:
        return None
    place, start = max(opened)
    return None if TAGS[start] in text[place:] else TAGS[start]
