"""A question and the turns before it."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {role: role for role in get_args(Role)}


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str

    def as_message(self) -> dict[str, str]:
        """The turn in the form for chat templates, HTTP endpoints and tables."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """Input turns of the student, which end with the user's, and the assistant's turn as the target."""

    turns: tuple[Turn, ...]
    target: str


@dataclass(frozen=True)
class SkippedRow:
    """Why a method cannot use a row; reasons are counted and reported."""

    reason: str


History = tuple[Turn, ...]
"""The turns before a question: an optional system turn, then alternating turns of user and assistant."""


def history_of(messages: Iterable[Mapping[str, str]] | None) -> History:
    """The turns of a table's column `history`; empty if it is null."""
    return tuple(Turn(_ROLES[message["role"]], message["content"]) for message in messages or ())


def with_history(prompt: str, history: History = ()) -> tuple[Turn, ...]:
    """The conversation that ends in a question."""
    return (*history, Turn("user", prompt))


def with_system(history: History, text: str | None) -> History:
    """The turns with this system turn first, unless they have one; unchanged if there is no text."""
    if text is None or (history and history[0].role == "system"):
        return history
    return (Turn("system", text), *history)


def sample_text(name: str, words: int = 80) -> str:
    """Return a text to test a chat template with: one that changes if a template alters more than its borders."""
    lines = f"""{name} begins: <b>Bold</b> & "quoted", it's 100 % {{{{ \\frac{{1}}{{2}} }}}}.

    def Indented(x):
\treturn x  # Two  blanks

"""
    return f"{lines}{' '.join(f'Word {number} of {name}.' for number in range(words))} {name} ends"


def sample_history(exchanges: int, *, system: bool) -> History:
    """Return turns to test a chat template with: `exchanges` questions with answers, all texts different."""
    spoken = [
        (Turn("user", sample_text(f"Question {n}", words)), Turn("assistant", sample_text(f"Answer {n}", words)))
        for n, words in zip(range(1, exchanges + 1), itertools.chain([80, 80], itertools.repeat(4)), strict=False)
    ]
    history = tuple(turn for pair in spoken for turn in pair)
    return with_system(history, sample_text("The system's text")) if system else history


def transcript(prompt: str, history: History) -> str:
    """Text of a question for use in another prompt: with the turns before it, if any, each under its role."""
    if not history:
        return prompt
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in with_history(prompt, history))
