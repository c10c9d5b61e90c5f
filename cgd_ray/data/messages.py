"""The question, the turns before it and the answer after it, from a column of messages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from cgd_ray.data.prompt_id import is_blank
from cgd_ray.data.skipped import RowError
from cgd_ray.prompts.conversation import History, Role, Turn

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
}
"""Roles by their names in OpenAI's form (`role`, `content`), ShareGPT's (`from`, `value`) and other forms."""

_TOOLS = {"tool", "tools", "function", "functions", "observation", "environment", "ipython"}
_CALLS = ("tool_calls", "tool_call", "tool_call_id", "function_call", "tools", "functions")
_MEDIA = ("images", "image", "audios", "audio", "videos", "video")
_MEDIA_OF_PARTS = (*_MEDIA, *(f"{kind}_url" for kind in ("image", "audio", "video")),
    *(f"input_{kind}" for kind in ("image", "audio", "video", "file")), "file", "file_id", "file_url",
)  # fmt: skip
BESIDE = ("tools", "functions", *_MEDIA)
"""Columns beside a conversation that, if not empty, mean that it uses tools or media."""


@dataclass(frozen=True)
class Asked:
    """A conversation, split at its last question."""

    history: History
    question: str
    answer: str | None
    """The assistant's turn after the question, if any."""


@dataclass(frozen=True)
class _Reader:
    """Reads one row's messages; every error names the row, the column and the message."""

    source: str
    column: str

    def refuse(self, problem: str, reason: str) -> NoReturn:
        text = f"{self.source}: {self.column}: {problem}. Fix: mend the row, or leave it out"
        raise RowError(text, self.source, reason)

    def turns(self, value: object) -> list[Turn]:
        messages = _as_list(value)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            self.refuse("not a list of messages (objects with role and content)", "no list of messages")
        turns = [self.turn(number, message) for number, message in enumerate(messages, start=1)]
        return [
            turn for turn in turns if turn.role != "system" or not is_blank(turn.content)
        ]  # "" means no system turn

    def turn(self, number: int, message: Mapping[str, object]) -> Turn:
        given = _first_filled(message, "role", "from")
        name = given.strip().lower() if isinstance(given, str) else ""
        self.refuse_beside(message, f"message {number}")
        if name.partition("_")[0].partition("-")[0] in _TOOLS:
            self.refuse(f"message {number} is of a tool, which no stage here can do", "tools")
        role = _ROLES.get(name)
        if role is None:
            found = f"role {given!r:.40}" if given is not None else f"the keys {', '.join(message)} and no role"
            self.refuse(f"message {number} has {found}, not system, user or assistant", "unknown role")
        return Turn(role, self.text(number, _first_filled(message, "content", "value", "text")))

    def refuse_beside(self, fields: Mapping[str, object], where: str) -> None:
        """Refuse the row if fields beside a text hold tools or media."""
        if called := [name for name in _CALLS if _is_filled(fields.get(name))]:
            self.refuse(f"{where} has {called[0]}: no stage here can call tools", "tools")
        if shown := [name for name in _MEDIA_OF_PARTS if _is_filled(fields.get(name))]:
            self.refuse(f"{where} has {shown[0]}: no stage here can show them", "images or other media")

    def text(self, number: int, content: object) -> str:
        if content is None or isinstance(content, str):
            return content or ""
        if not isinstance(content, list):
            self.refuse(f"message {number} has no text", "message without text")
        return "\n".join(self.part(number, part) for part in content)  # as vLLM joins them

    def part(self, number: int, part: object) -> str:
        """The text of one part of a message."""
        if isinstance(part, str):
            return part
        fields = part if isinstance(part, dict) else {}
        kind, text = fields.get("type", "text"), fields.get("text")
        if kind not in ("text", "input_text", "output_text"):
            self.refuse(f"message {number} holds a part of type {kind!r:.40}, not text", "images or other media")
        self.refuse_beside(fields, f"a part of message {number}")
        if not isinstance(text, str):
            self.refuse(f"message {number} holds a part without text", "message without text")
        return text


def read_messages(value: object, source: str, column: str, beside: Mapping[str, object] | None = None) -> Asked:
    """Read the last user turn, the turns before it and the answer after it.

    Args:
        value: a list of objects with `role` and `content` or `from` and `value`, such a list as JSON text, or an
            object of two lists, as `datasets` returns them.
        source: FILE:ROW, for errors.
        column: the recipe's key and the column's name, for errors.
        beside: the row's other columns, at least those of `BESIDE`.

    Raises:
        RowError: there is no such turn, a message belongs to a tool or is not text, a system turn follows another
            turn, or turns of user and assistant do not alternate.
    """
    reader = _Reader(source, column)
    reader.refuse_beside(beside or {}, "the row")
    turns = reader.turns(value)
    last = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        reader.refuse("no message is the user's", "no user turn")
    if any(turn.role == "system" for turn in turns[1:]):
        reader.refuse("a system message stands behind others", "turns out of order")
    history, behind = turns[:last], turns[last + 1 :]
    spoken = [turn for turn in turns if turn.role != "system"]
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(spoken)):
        reader.refuse("messages of user and assistant do not alternate, the user's first", "turns out of order")
    if any(is_blank(turn.content) for turn in history):
        reader.refuse("a message before the question is empty", "message without text")
    answer = behind[0].content if behind and not is_blank(behind[0].content) else None
    return Asked(tuple(history), turns[last].content, answer)


def read_answer(value: object, source: str, column: str) -> str:
    """Read the assistant's turn of a column with nothing else, such as `completion` beside a `prompt` of messages.

    Raises:
        RowError: the column holds anything else.
    """
    reader = _Reader(source, column)
    turns = reader.turns(value)
    if len(turns) != 1 or turns[0].role != "assistant":
        reader.refuse("not one message of the assistant", "reference that is no text or number")
    return turns[0].content


def _is_filled(value: object) -> bool:
    """Whether a field holds a value: tables have all fields in all rows, most of them null."""
    if isinstance(value, dict):
        return any(_is_filled(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_is_filled(inner) for inner in value)
    return value is not None and (not isinstance(value, str) or value.strip() not in ("", "[]", "{}", "null", "None"))


def _first_filled(message: Mapping[str, object], *names: str) -> object:
    return next((message[name] for name in names if message.get(name) is not None), None)


def _as_list(value: object) -> object:
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    is_even = len({len(column) for column in value.values()}) == 1
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)] if is_even else None
