"""Stages as data: drafts, answers, critiques, refinements and evaluation, and the fingerprints of their tables."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cgd_ray.config.evaluation import Decoding
from cgd_ray.config.generation import GenerationSection, Sampling
from cgd_ray.config.recipe import Recipe
from cgd_ray.prompts.conversation import Turn, history_of, transcript
from cgd_ray.prompts.templates import PromptSet
from cgd_ray.stages.stage import BarePrompt, Row, Stage
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.schemas import RESULTS, TELEMETRY
from cgd_ray.storage.tables import Table

Role = Literal["student", "teacher"]


@dataclass(frozen=True)
class CritiquePrompt:
    """x and y' in one turn, with a reference answer beside them if `reference` names a column."""

    prompts: PromptSet
    reference: str | None

    def __call__(self, row: Row) -> tuple[Turn, ...]:
        """Return the conversation that asks for this row's completion."""
        shown = row[self.reference] if self.reference else None
        question = transcript(row["prompt"], history_of(row.get("history")))
        return (Turn("user", self.prompts.critique(question, row["draft"], shown)),)


@dataclass(frozen=True)
class RefinePrompt:
    """The next turn of the critique's conversation, so that the engine has all earlier turns in its prefix cache."""

    critique: CritiquePrompt

    def __call__(self, row: Row) -> tuple[Turn, ...]:
        """Return the conversation that asks for this row's completion."""
        question = transcript(row["prompt"], history_of(row.get("history")))
        turn = self.critique.prompts.refine(question, row["draft"], row["critique"])
        return (*self.critique(row), Turn("assistant", row["critique"]), Turn("user", turn))


@dataclass(frozen=True)
class Stages:
    """The stages of a recipe, in the order in which rows pass through them."""

    draft: Stage
    answer: Stage | None
    critique: Stage
    refine: Stage

    @property
    def student(self) -> list[Stage]:
        """Stages that run on the student's engine."""
        return [self.draft]

    @property
    def teacher(self) -> list[Stage]:
        """Stages that run on the teacher's engine."""
        return [*([self.answer] if self.answer else []), self.critique, self.refine]

    @property
    def all(self) -> list[Stage]:
        """All stages, upstream first."""
        return [*self.student, *self.teacher]


def role_of(stage: str) -> Role:
    """Return the role whose engine runs a stage."""
    return "student" if stage in ("draft", "evaluation") else "teacher"


@dataclass(frozen=True)
class Origin:
    """Model and engine that produce a stage's texts."""

    model: str
    """Identity of the model, see `EngineOptions.model_identity`."""
    engine: dict[str, object]
    """Options that change results, see `EngineOptions.identity`."""


@dataclass(frozen=True)
class StageMaker:
    """Creates the stages of one run."""

    store: Store
    seed: int
    again: frozenset[str] = frozenset({"failed"})
    """Statuses of results that the next run retries."""

    def make_stage(
        self,
        name: str,
        origin: Origin,
        sampling: Sampling,
        conversation: Callable[[Row], tuple[Turn, ...]],
        inputs: tuple[str, ...],
        content: dict[str, object] | None = None,
    ) -> Stage:
        """Create a stage and its table.

        Args:
            name: name of the stage.
            origin: model and engine.
            sampling: how completions are decoded.
            conversation: builds the conversation that is sent to the engine for a row.
            inputs: columns of the row that the completion is made from.
            content: further content that the table's fingerprint covers.
        """
        seed = sampling.seed if sampling.seed is not None else self.seed
        described = {
            "stage": name,
            "model": origin.model,
            "engine": origin.engine,
            "sampling": _identity(sampling, seed),
            **(content or {}),
        }
        digest = fingerprint(described)
        return Stage(
            name=name,
            results=Table(self.store, name, digest, RESULTS),
            telemetry=Table(self.store, f"{name}-telemetry", digest, TELEMETRY),
            model=origin.model,
            sampling=sampling,
            seed=seed,
            inputs=inputs,
            conversation=conversation,
            has_verdict=name == "critique",
            again=self.again,
            description=described,
        )


def generation_stages(
    generation: GenerationSection, maker: StageMaker, templates: PromptSet, student: Origin, teacher: Origin
) -> Stages:
    """Create the stages that make training rows."""
    draft = maker.make_stage("draft", student, generation.draft, BarePrompt(), ("prompt",))
    answer = None
    if generation.needs_answer:
        answer = maker.make_stage("answer", teacher, generation.answer, BarePrompt(), ("prompt",))
    column = {"none": None, "teacher": "answer", "dataset": "reference"}[generation.critique.reference]
    shown = (column,) if column else ()
    upstream = {"draft": draft.results.fingerprint}
    if column == "answer" and answer:
        upstream["answer"] = answer.results.fingerprint
    ask = CritiquePrompt(templates, column)
    critique = maker.make_stage(
        "critique",
        teacher,
        generation.critique,
        ask,
        ("prompt", "draft", *shown),
        {
            "template": templates.critique_source,
            "reference": column,
            "upstream": upstream,
            **({"verdict": "asked"} if generation.critique.verdict == "asked" else {}),
        },
    )
    critique = replace(critique, asks_verdict=generation.critique.verdict == "asked")
    refine = maker.make_stage(
        "refine",
        teacher,
        generation.refine,
        RefinePrompt(ask),
        ("prompt", "draft", "critique", *shown),
        {"template": templates.refine_source, "upstream": {"critique": critique.results.fingerprint}},
    )
    return Stages(draft, answer, critique, refine)


def evaluation_stage(recipe: Recipe, store: Store, model: str, decoding: Decoding) -> Stage:
    """Create the stage in which a student of this identity answers questions; an empty answer is wrong."""
    # Arguments of the template are the same as for drafting and training.
    sampling = Sampling(**decoding.model_dump(), chat_template_kwargs=recipe.generation.draft.chat_template_kwargs)
    origin = Origin(model, recipe.student.engine.identity())
    maker = StageMaker(store, recipe.run.seed)
    stage = maker.make_stage("evaluation", origin, sampling, BarePrompt(), ("prompt",))
    return replace(stage, must_say_something=False)


def _identity(sampling: Sampling, seed: int) -> dict[str, object]:
    """Return the sampling options that change results: a greedy stage has no seed and ignores top_p."""
    content: dict[str, object] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "chat_template_kwargs": sampling.chat_template_kwargs,
    }
    if sampling.temperature > 0:
        content |= {"top_p": sampling.top_p, "seed": seed}
    return content
