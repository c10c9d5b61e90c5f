"""Contexts under which the same refinement is scored: with the critique, without it, and with controls in its place."""

from collections.abc import Callable, Mapping

from cgd_ray.grading.answers import stated_answer
from cgd_ray.grading.boxes import last_boxed
from cgd_ray.methods import Contexts, Example
from cgd_ray.prompts.conversation import Turn, with_history

_NEUTRAL = (
    "Read the question again with care. Take the time that it needs, write each step on a line of its own, and use "
    "clear words. Check the numbers that you copy. A reader who knows the question alone should follow what you write. "
)


def _draft(example: Example, contexts: Contexts) -> tuple[Turn, ...]:
    return contexts.show(example, example.draft, None)


def _critique(example: Example, contexts: Contexts) -> tuple[Turn, ...]:
    return contexts.show(example, example.draft, example.critique)


def _shuffled(example: Example, contexts: Contexts) -> tuple[Turn, ...] | None:
    other = example.other_critique
    return None if other is None else contexts.show(example, example.draft, other)


def _neutral(example: Example, contexts: Contexts) -> tuple[Turn, ...]:
    return contexts.show(example, example.draft, neutral_text(len(example.critique)))


def _answer(example: Example, contexts: Contexts) -> tuple[Turn, ...] | None:
    answer = last_boxed(example.refinement) or stated_answer(example.refinement)
    return None if not answer else contexts.show(example, None, f"The final result is {answer}.")


CONTEXTS: Mapping[str, Callable[[Example, Contexts], tuple[Turn, ...] | None]] = {
    "prompt": lambda example, _: with_history(example.prompt, example.history),
    "draft": _draft,
    "critique": _critique,
    "shuffled": _shuffled,
    "neutral": _neutral,
    "answer": _answer,
}
"""Turns by context; None if the row has no such context.

`prompt`: x. `draft`: x, y'. `critique`: x, y', c. `shuffled`: x, y' and the critique of another prompt's draft with the
same verdict. `neutral`: x, y' and a text of the critique's length that says nothing of the question. `answer`: x and
the refinement's final result, in place of the critique.
"""


def neutral_text(length: int) -> str:
    """Return a text of about `length` characters, cut after a word, that fits every question."""
    text = _NEUTRAL * (length // len(_NEUTRAL) + 1)
    cut = text[: max(length, 1)]
    return (cut.rpartition(" ")[0] if " " in cut and not text[len(cut) :].startswith(" ") else cut).strip() or "Read."
