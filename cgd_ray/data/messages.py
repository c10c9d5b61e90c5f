"""The question, the turns before it and the answer behind it, from a column of messages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from cgd_ray.data.skipped import RowError
from cgd_ray.prompts.conversation import History, Role, Turn

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Roles by the names that OpenAI's form (`role`, `content`) and ShareGPT's (`from`, `value`) have for them."""

_TOOLS = ("tool", "function", "function_call", "function_response", "observation", "ipython", "tool_call")
_CALLS = ("tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True)
class Asked:
    """A conversation by its last question."""

    history: History
    question: str
    answer: str | None
    """The assistant's turn behind the question, where there is one."""


@dataclass(frozen=True)
class _Reader:
    """One row's messages; every refusal names the row, the column and the turn."""

    source: str
    column: str

    def refuse(self, problem: str, reason: str) -> NoReturn:
        text = f"{self.source}: {self.column}: {problem}. Fix: mend the row, or leave it out"
        raise RowError(text, self.source, reason)

    def turns(self, value: object) -> list[Turn]:
        messages = _as_list(value)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            self.refuse("not a list of messages (objects with role and content)", "no list of messages")
        return [self.turn(number, message) for number, message in enumerate(messages, start=1)]

    def turn(self, number: int, message: Mapping[str, object]) -> Turn:
        given = _either(message, "role", "from")
        name = given.strip().lower() if isinstance(given, str) else ""
        if name in _TOOLS or any(message.get(call) for call in _CALLS):
            self.refuse(f"message {number} is of a tool, or calls one, which no stage here can do", "tools")
        role = _ROLES.get(name)
        if role is None:
            self.refuse(f"message {number} has role {given!r:.40}, not system, user or assistant", "unknown role")
        return Turn(role, self.text(number, _either(message, "content", "value")))

    def text(self, number: int, content: object) -> str:
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            self.refuse(f"message {number} has no text", "message without text")
        return "".join(self.part(number, part) for part in content)

    def part(self, number: int, part: object) -> str:
        """The text of one of the parts that a message may have."""
        if isinstance(part, str):
            return part
        fields = part if isinstance(part, dict) else {}
        kind, text = fields.get("type", "text"), fields.get("text")
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            self.refuse(f"message {number} holds a part of type {kind!r:.40}, not text", "images or other parts")
        return text


def read_messages(value: object, source: str, column: str) -> Asked:
    """The last turn of the user with what stands before and behind it.

    Args:
        value: a list of objects with `role` and `content` or `from` and `value`, such a list as JSON text, or an
            object of two lists, as `datasets` gives them.
        source: FILE:ROW, for errors.
        column: the recipe's key and the column's name, for errors.

    Raises:
        RowError: there is no such turn, a turn is of a tool or holds an image, a system turn stands behind another
            one, or turns of user and assistant do not alternate.
    """
    reader = _Reader(source, column)
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
    if any(not turn.content.strip() for turn in history if turn.role != "system"):
        reader.refuse("a message before the question is empty", "message without text")
    kept = tuple(turn for turn in history if turn.content.strip())  # data sets write "" for no system message
    return Asked(kept, turns[last].content, behind[0].content if behind else None)


def _either(message: Mapping[str, object], one: str, other: str) -> object:
    value = message.get(one)
    return message.get(other) if value is None else value


def _as_list(value: object) -> object:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    is_even = len({len(column) for column in value.values()}) == 1
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)] if is_even else None
