"""Thinking that models write before their answers: the tags around it, and texts without it."""

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
"""Where thinking begins and ends, by the chat formats of the models that are in use."""

_WITHOUT_TOKENS = re.compile(r"\s*analysis\S.*?assistantfinal\S", re.DOTALL)  # gpt-oss, decoded without special tokens


def without_thinking(text: str, tags: tuple[str, str]) -> tuple[str, bool]:
    """The text behind the thinking, and whether that came to an end; a text without thinking stays as it is."""
    start, end = tags
    before, found, behind = text.partition(end)
    if found:
        return behind.strip(), True
    if before.lstrip().startswith(start):
        return "", False
    return text, True


def thinking_in(text: str, conversation: str) -> str | None:
    """The tag by which a text shows thinking that nothing cut off; none where the conversation itself speaks of it.

    The opening tag counts at the beginning alone, the closing one everywhere: chat templates may write the first.
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
