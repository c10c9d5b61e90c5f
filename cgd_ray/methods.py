"""Methods as views of a curated row: which texts are the context, which is the target (arXiv 2505.11628, section 3)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cgd_ray.config.training import TrainingSection, ViewName
from cgd_ray.prompts.conversation import History, Turn, history_of, with_history
from cgd_ray.prompts.templates import PromptSet
from cgd_ray.storage.fingerprint import derived_seed


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
    """Of another prompt's draft with the same verdict (see `cgd_ray.training.dataset.shuffled_critiques`)."""
    history: History = ()
    """The turns before the prompt."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Example":
        """The example of a table row; other columns are left out."""
        texts = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        return cls(**texts | {"history": history_of(row.get("history"))})


@dataclass(frozen=True)
class Conversation:
    """Turns that the student is shown, the user's last, and the assistant's turn that is learnt."""

    turns: tuple[Turn, ...]
    target: str


@dataclass(frozen=True)
class Lacking:
    """Why a row has no such view; the reason is counted and reported."""

    reason: str


@dataclass(frozen=True)
class Contexts:
    """The texts around a row: templates, and how many turns a context has."""

    prompts: PromptSet
    multi_turn: bool = False

    def show(self, example: Example, draft: str | None, critique: str | None) -> tuple[Turn, ...]:
        """The turns that show what there is; without a draft there is nothing to answer, so one turn has it all."""
        if self.multi_turn and draft is not None:
            turns = (*with_history(example.prompt, example.history), Turn("assistant", draft))
            return with_history(self.prompts.again(critique), turns)
        return with_history(self.prompts.context(example.prompt, draft, critique), example.history)


_TEXTS = ("prompt", "draft", "critique", "other_critique", "refinement", "answer", "reference")

View = Callable[[Example, Contexts], Conversation | Lacking]


def _bare(example: Example) -> tuple[Turn, ...]:
    return with_history(example.prompt, example.history)


def _cgd(example: Example, contexts: Contexts) -> Conversation:
    return Conversation(contexts.show(example, example.draft, example.critique), example.refinement)


def _no_critique(example: Example, contexts: Contexts) -> Conversation:
    return Conversation(contexts.show(example, example.draft, None), example.refinement)


def _no_draft(example: Example, contexts: Contexts) -> Conversation:
    return Conversation(contexts.show(example, None, example.critique), example.refinement)


def _shuffled(example: Example, contexts: Contexts) -> Conversation | Lacking:
    if example.other_critique is None:
        return Lacking("no other prompt with its verdict")
    return Conversation(contexts.show(example, example.draft, example.other_critique), example.refinement)


def _cft(example: Example, contexts: Contexts) -> Conversation:
    question = contexts.prompts.cft(example.prompt, example.draft)
    return Conversation(with_history(question, example.history), example.critique)


def _refsft(example: Example, _: Contexts) -> Conversation:
    return Conversation(_bare(example), example.refinement)


def _sft(example: Example, _: Contexts) -> Conversation | Lacking:
    if example.reference is None:
        return Lacking("no reference")
    return Conversation(_bare(example), example.reference)


def _distill(example: Example, _: Contexts) -> Conversation | Lacking:
    if example.answer is None:
        return Lacking("no teacher answer")
    return Conversation(_bare(example), example.answer)


VIEWS: Mapping[ViewName, View] = {
    "cgd": _cgd,
    "sft": _sft,
    "distill": _distill,
    "cft": _cft,
    "refsft": _refsft,
    "cgd-no-critique": _no_critique,
    "cgd-no-draft": _no_draft,
    "cgd-shuffled": _shuffled,
}
"""Every single-view method. A new one is a function and a line here, its name in `ViewName`, and the text that it
learns in `cgd_ray.curation.filters`."""


def view(example: Example, method: ViewName, contexts: Contexts) -> Conversation | Lacking:
    """What `method` trains on for this row, or why the row has nothing for it."""
    return VIEWS[method](example, contexts)


def longest_field(example: Example, shown: Conversation) -> str:
    """Which of the row's texts has most characters, of those that a view shows."""
    texts = {name: getattr(example, name) for name in _TEXTS}
    seen = [*(turn.content for turn in shown.turns), shown.target]
    lengths = {name: len(text) for name, text in texts.items() if text and any(text in turn for turn in seen)}
    lengths["history"] = sum(len(turn.content) for turn in example.history)
    return max(lengths, key=lengths.__getitem__)


def require_contexts(prompts: PromptSet, training: TrainingSection) -> None:
    """Render what each method will show, once, before anything is paid for.

    Raises:
        ConfigError: a template names a value that is not there, or not there for this method.
    """
    texts = ("x", "y'", "c", "y^")
    example = Example("", 0, *texts, answer="y_T", reference="y_ref", other_critique="c'")
    for name in sorted(training.views):
        view(example, name, Contexts(prompts, training.context == "multi-turn"))


def view_name(example: Example, training: TrainingSection, seed: int) -> ViewName:
    """The view that a row takes: the method itself, or for `mix` one drawn by seed, key and weights.

    The draw depends on the row's key alone, so adding or reordering rows changes no other row's view.
    """
    if training.method != "mix":
        return training.method
    return _drawn(example, training.mix, seed)


def _drawn(example: Example, weights: Mapping[ViewName, float], seed: int) -> ViewName:
    names = sorted(weights)
    draw = derived_seed(seed, "mix", example.prompt_id, example.sample) / 2**31 * sum(weights.values())
    for name in names[:-1]:
        draw -= weights[name]
        if draw < 0:
            return name
    return names[-1]
