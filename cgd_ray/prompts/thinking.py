"""Thinking blocks before the answers of models: recognise their tags, and remove the blocks."""

import re
from functools import cache

TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<thoughts>": "</thoughts>",
    "<reasoning>": "</reasoning>",
    "<reason>": "</reason>",
    "[THINK]": "[/THINK]",
    "[BEGIN OF THINKING]": "[END OF THINKING]",
    "<seed:think>": "</seed:think>",
    "<mm:think>": "</mm:think>",
    "<longcat_think>": "</longcat_think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
    "<|channel>": "<channel|>",
    "<|open|>think<|sep|>": "<|close|>think<|sep|>",
    "<|content_thinking|>": "<|end_message|>",
    "to=self<|message|>": "<|eom|>",
    "◁think▷": "◁/think▷",
}
"""Opening and closing tags of thinking in the chat formats of current models."""

_NAME = r"(?:\w{1,30}[:_])?think(?:ing)?(?::\w{1,30})?|thoughts?|reason(?:ing)?"
_ATTRIBUTES = r"""(?:\s{1,9}[\w:-]{1,40}\s?=\s?(?:"[^"<>]{0,200}"|'[^'<>]{0,200}'|[^\s"'<>]{1,200})){0,9}"""
_BLANKS = r"\s{0,9}"


def _element(name: str, slash: str) -> str:
    """Return a pattern of an XML tag with any blanks and attributes."""
    return rf"<{_BLANKS}{slash}{_BLANKS}(?:{name}){_ATTRIBUTES}{_BLANKS}>"


@cache
def _pattern(tag: str) -> str:
    """Return a pattern of one tag: with blanks between its parts, which decoding may insert, and attributes."""
    if found := re.fullmatch(r"<(/?)([\w:]+)>", tag):
        return _element(re.escape(found[2]), found[1])
    return _BLANKS.join(re.escape(part) for part in re.findall(r"<[^<>]*>|[^<>]+|[<>]", tag))


_ELEMENT = re.compile(rf"<{_BLANKS}(?P<slash>/?){_BLANKS}(?P<name>{_NAME}){_ATTRIBUTES}{_BLANKS}>", re.IGNORECASE)
_OPENING = re.compile("|".join([_element(_NAME, ""), *map(_pattern, TAGS)]), re.IGNORECASE)
_CLOSING = re.compile("|".join([_element(_NAME, "/"), *map(_pattern, TAGS.values())]), re.IGNORECASE)

_AT_FIRST = {
    "analysis...assistantfinal": re.compile(r"\s*analysis\S.*?assistantfinal\S", re.DOTALL),
    "thought": re.compile(r"\s*thought\n"),
    "Here is my thought process:": re.compile(r"\s*Here(?:['\u2019]s| is) my thought process:", re.IGNORECASE),
}
"""Beginnings of thinking without tags: of gpt-oss and Gemma, decoded without special tokens, and of Granite."""


def without_thinking(text: str, tags: tuple[str, str]) -> tuple[str, bool]:
    """Return the text after the thinking, and whether the thinking ended; a text without thinking is unchanged."""
    start, end = tags
    if found := re.search(_pattern(end), text, re.IGNORECASE):
        return text[found.end() :].strip(), True
    if any(_begins(text, found.start()) for found in re.finditer(_pattern(start), text, re.IGNORECASE)):
        return "", False
    return text, True


def thinking_in(text: str, conversation: str) -> str | None:
    """Return the tag that shows uncut thinking in a text; None if the conversation itself contains the tag.

    The opening tag counts only at the beginning of the text, of a line or of a sentence, the closing one everywhere:
    chat templates may write the opening tag.
    """
    shown = [found[0] for found in _OPENING.finditer(text) if _begins(text, found.start())]
    shown += [found[0] for found in _CLOSING.finditer(text)]
    if shown:
        known = {_plain(found[0]) for tags in (_OPENING, _CLOSING) for found in tags.finditer(conversation)}
        if unknown := [tag for tag in shown if _plain(tag) not in known]:
            return " ".join(unknown[0].split())
    return next((name for name, beginning in _AT_FIRST.items() if beginning.match(text)), None)


def opened_tag(text: str) -> str | None:
    """Return the closing tag of the thinking that a text, such as a template's generation prompt, leaves open."""
    opened = [(found.start(), found[0]) for found in _OPENING.finditer(text)]
    if not opened:
        return None
    place, start = opened[-1]
    end = _end_of(start)
    return None if re.search(_pattern(end), text[place:], re.IGNORECASE) else end


def _begins(text: str, place: int) -> bool:
    """Return whether the text, a line or a sentence begins at this place."""
    before = text[max(0, place - 200) : place]
    said = before.rstrip()
    return not said or "\n" in before[len(said) :] or said[-1] in ".!?…"


def _plain(tag: str) -> str:
    """Return the tag without its attributes, blanks and upper case."""
    if found := _ELEMENT.fullmatch(tag):
        return f"<{found['slash']}{found['name']}>".lower()
    return re.sub(r"\s", "", tag).lower()


def _end_of(start: str) -> str:
    """Return the closing tag of an opening one."""
    if found := _ELEMENT.fullmatch(start):
        return f"</{found['name']}>"
    return next(end for known, end in TAGS.items() if _plain(known) == _plain(start))
