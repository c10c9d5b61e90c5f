"""A question and the turns before it."""

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
        """The form that chat templates, HTTP endpoints and tables take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """Turns that the student is shown, the user's last, and the assistant's turn that it learns."""

    turns: tuple[Turn, ...]
    target: str


@dataclass(frozen=True)
class SkippedRow:
    """Why a method cannot use a row; reasons are counted and reported."""

    reason: str


History = tuple[Turn, ...]
"""What was said before a question: a system turn or none, then turns of user and assistant by turns."""


def history_of(messages: Iterable[Mapping[str, str]] | None) -> History:
    """The turns of a table's column `history`; none where it is null."""
    return tuple(Turn(_ROLES[message["role"]], message["content"]) for message in messages or ())


def with_history(prompt: str, history: History = ()) -> tuple[Turn, ...]:
    """The conversation that ends in a question."""
    return (*history, Turn("user", prompt))


def with_system(history: History, text: str | None) -> History:
    """The turns with this system turn first, unless they have one; unchanged where there is no text."""
    if text is None or (history and history[0].role == "system"):
        return history
    return (Turn("system", text), *history)


def sample_history(exchanges: int, *, system: bool) -> History:
    """Turns to try a chat template on: so many questions with their answers, each text another one."""
    spoken = [(Turn("user", f"question {n}."), Turn("assistant", f"answer {n}.")) for n in range(1, exchanges + 1)]
    history = tuple(turn for pair in spoken for turn in pair)
    return with_system(history, "rules of the conversation") if system else history


def transcript(prompt: str, history: History) -> str:
    """A question for a text about it: with the turns before it, where there are any, each under its role."""
    if not history:
        return prompt
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in with_history(prompt, history))
