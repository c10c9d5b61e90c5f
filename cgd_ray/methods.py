"""Training methods: the texts of a row in the student's context, and the target (arXiv 2505.11628, section 3).

A new method needs an entry in `METHODS` and its name in `MethodName`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cgd_ray.prompts.conversation import Conversation, History, SkippedRow, Turn, history_of, with_history
from cgd_ray.prompts.templates import PromptSet

MethodName = Literal["cgd", "sft", "distill", "cft", "refsft", "cgd-no-critique", "cgd-no-draft", "cgd-shuffled"]
Shown = Literal["draft", "critique", "other_critique"]
Target = Literal["refine", "answer", "reference", "critique"]


@dataclass(frozen=True)
class Example:
    """One row of the table `EXAMPLES`."""

    prompt_id: str
    sample: int
    prompt: str
    draft: str
    critique: str
    refinement: str
    verdict: str | None = None
    answer: str | None = None
    reference: str | None = None
    other_critique: str | None = None
    """Critique of another prompt's draft with the same verdict (see `cgd_ray.training.dataset.shuffled_critiques`)."""
    history: History = ()
    """The turns before the prompt."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Example":
        """Return the example of a table row; other columns are ignored."""
        texts = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        return cls(**texts | {"history": history_of(row.get("history"))})


@dataclass(frozen=True)
class Contexts:
    """Templates of a context, and whether it has several turns."""

    prompts: PromptSet
    multi_turn: bool = False

    def show(self, example: Example, draft: str | None, critique: str | None) -> tuple[Turn, ...]:
        """Return the turns with the given texts; without a draft, there is no answer, so one turn has all."""
        if self.multi_turn and draft is not None:
            turns = (*with_history(example.prompt, example.history), Turn("assistant", draft))
            return with_history(self.prompts.again(critique), turns)
        return with_history(self.prompts.context(example.prompt, draft, critique), example.history)


@dataclass(frozen=True)
class Method:
    """One training method."""

    shows: tuple[Shown, ...]
    """Texts of the row in the context, beside the prompt; if empty, the context is the bare prompt."""
    target: Target
    """The stage or column whose text is learnt."""
    template: Literal["context", "cft"] = "context"
    """Template of a context that shows more than the prompt."""

    def conversation(self, example: Example, contexts: Contexts) -> Conversation | SkippedRow:
        """Return context and target for this row, or why the row has none."""
        target = _TARGETS[self.target](example)
        lacking = "other_critique" if "other_critique" in self.shows and example.other_critique is None else None
        if target is None or lacking:
            return SkippedRow(_LACKING[lacking or self.target])
        return Conversation(self._context(example, contexts), target)

    def _context(self, example: Example, contexts: Contexts) -> tuple[Turn, ...]:
        if not self.shows:
            return with_history(example.prompt, example.history)
        if self.template == "cft":
            return with_history(contexts.prompts.cft(example.prompt, example.draft), example.history)
        critique = next((getattr(example, name) for name in self.shows if name.endswith("critique")), None)
        return contexts.show(example, example.draft if "draft" in self.shows else None, critique)


_TARGETS = {
    "refine": lambda example: example.refinement,
    "answer": lambda example: example.answer,
    "reference": lambda example: example.reference,
    "critique": lambda example: example.critique,
}
_LACKING = {
    "other_critique": "no other prompt with its verdict",
    "answer": "no teacher answer",
    "reference": "no reference",
}

METHODS: Mapping[MethodName, Method] = {
    "cgd": Method(("draft", "critique"), "refine"),
    "cgd-no-critique": Method(("draft",), "refine"),
    "cgd-no-draft": Method(("critique",), "refine"),
    "cgd-shuffled": Method(("draft", "other_critique"), "refine"),
    "cft": Method(("draft",), "critique", template="cft"),  # arXiv 2501.17703
    "refsft": Method((), "refine"),
    "distill": Method((), "answer"),
    "sft": Method((), "reference"),
}
"""Methods by name. `mix` is not one of them: the seed draws one of these for each row."""


def targets_of(names: Iterable[MethodName]) -> set[Target]:
    """Return the texts that these methods learn."""
    return {METHODS[name].target for name in names}


_TEXTS = ("prompt", "draft", "critique", "other_critique", "refinement", "answer", "reference")


def longest_text(example: Example, shown: Conversation) -> str:
    """Return the name of the row's longest text, in characters, among those in a conversation."""
    texts = {name: getattr(example, name) for name in _TEXTS}
    seen = [*(turn.content for turn in shown.turns), shown.target]
    lengths = {name: len(text) for name, text in texts.items() if text and any(text in turn for turn in seen)}
    lengths["history"] = sum(len(turn.content) for turn in example.history)
    return max(lengths, key=lengths.__getitem__)
