"""The four stages as data, and the fingerprints that say which of their tables is whose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cgd_ray.config.engine import TeacherSection
from cgd_ray.config.generation import Sampling
from cgd_ray.config.recipe import Recipe
from cgd_ray.config.training import TrainingResources
from cgd_ray.models.resolve import pinned_model
from cgd_ray.prompts.conversation import Turn, history_of, transcript
from cgd_ray.prompts.templates import PromptSet, load_prompts
from cgd_ray.runtime.device import fastest_type
from cgd_ray.stages.stage import BarePrompt, Row, Stage
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.runs import Run
from cgd_ray.storage.schemas import RESULTS, TELEMETRY
from cgd_ray.storage.tables import Table


@dataclass(frozen=True)
class CritiquePrompt:
    """x and y' in one turn, with a reference answer beside them where `reference` names a column."""

    prompts: PromptSet
    reference: str | None

    def __call__(self, row: Row) -> tuple[Turn, ...]:
        """The conversation that asks for this row's completion."""
        shown = row[self.reference] if self.reference else None
        question = transcript(row["prompt"], history_of(row.get("history")))
        return (Turn("user", self.prompts.critique(question, row["draft"], shown)),)


@dataclass(frozen=True)
class RefinePrompt:
    """The next turn of the critique's conversation, so that the engine has all before it in its prefix cache."""

    critique: CritiquePrompt

    def __call__(self, row: Row) -> tuple[Turn, ...]:
        """The conversation that asks for this row's completion."""
        question = transcript(row["prompt"], history_of(row.get("history")))
        turn = self.critique.prompts.refine(question, row["draft"], row["critique"])
        return (*self.critique(row), Turn("assistant", row["critique"]), Turn("user", turn))


@dataclass(frozen=True)
class Stages:
    """The stages of a recipe, in the order in which rows walk them."""

    draft: Stage
    answer: Stage | None
    critique: Stage
    refine: Stage

    @property
    def student(self) -> list[Stage]:
        """What the student's engine does."""
        return [self.draft]

    @property
    def teacher(self) -> list[Stage]:
        """What the teacher's engine does."""
        return [*([self.answer] if self.answer else []), self.critique, self.refine]

    @property
    def all(self) -> list[Stage]:
        """Every stage, upstream first."""
        return [*self.student, *self.teacher]


def build_stages(recipe: Recipe, store: Store) -> Stages:
    """Resolve models and templates into stages with their tables.

    Raises:
        ConfigError: a model or a template is not there.
    """
    generation, prompts = recipe.generation, load_prompts(recipe.generation.prompts)
    student = _Origin(student_identity(recipe), recipe.student.engine.identity())
    teacher = _Origin(teacher_identity(recipe), recipe.teacher.engine.identity())
    again = {"failed", *(["quarantined"] if generation.retry_quarantined else [])}
    maker = _Maker(store, recipe.run.seed, frozenset(again))

    draft = maker.make("draft", student, generation.draft, BarePrompt(), ("prompt",), {})
    answer = None
    if generation.needs_answer:
        answer = maker.make("answer", teacher, generation.answer, BarePrompt(), ("prompt",), {})
    column = {"none": None, "teacher": "answer", "dataset": "reference"}[generation.critique.reference]
    shown = (column,) if column else ()
    upstream = {"draft": draft.results.fingerprint}
    if column == "answer" and answer:
        upstream["answer"] = answer.results.fingerprint
    ask = CritiquePrompt(prompts, column)
    critique = maker.make(
        "critique",
        teacher,
        generation.critique,
        ask,
        ("prompt", "draft", *shown),
        {"template": prompts.critique_source, "reference": column, "upstream": upstream},
    )
    refine = maker.make(
        "refine",
        teacher,
        generation.refine,
        RefinePrompt(ask),
        ("prompt", "draft", "critique", *shown),
        {"template": prompts.refine_source, "upstream": {"critique": critique.results.fingerprint}},
    )
    return Stages(draft, answer, critique, refine)


def pin_models(recipe: Recipe, store: Store, *, runs: Sequence[str] = ()) -> Recipe:
    """The recipe with all that fingerprints need said outright.

    Commits stand in place of branches and tags of hub models, whole paths in place of relative ones, texts in place of
    chat template files, and compute types in place of `auto`: those that the run has, else the fastest ones.

    Args:
        recipe: as a person wrote it.
        store: the root.
        runs: names of the runs that share one set of types, where they are several; by default the recipe's run.

    Raises:
        ConfigError: a model or a file is not there.
    """
    student, teacher = recipe.student, recipe.teacher.engine
    known = _Types.of([Run(store, name) for name in runs or [recipe.run.name]])
    is_used = student.engine.has_weights or recipe.training.enabled
    model, revision = student.model, student.revision
    if is_used:
        model, revision = pinned_model(model, revision, recipe.storage, "student.model")
    engine = student.engine.pinned("student.engine", known.student)
    pinned = {"model": model, "revision": revision, "engine": engine}
    changes: dict[str, Any] = {"student": student.model_copy(update=pinned)}
    if teacher.has_weights:
        model, revision = pinned_model(teacher.model, teacher.revision, recipe.storage, "teacher.engine.model")
        asked = teacher.pinned("teacher.engine", known.teacher)
        changes["teacher"] = TeacherSection(engine=asked.model_copy(update={"model": model, "revision": revision}))
    if recipe.training.precision == "auto":
        precision = known.training or _fastest_precision(recipe.training.resources)
        changes["training"] = recipe.training.model_copy(update={"precision": precision})
    return recipe.model_copy(update=changes)


def _fastest_precision(wanted: TrainingResources) -> str:
    return "bf16" if fastest_type(wanted.gpus_per_worker, wanted.accelerator_type) == "bfloat16" else "fp32"


def pin_student_type(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with the type that the run's student was evaluated with; no model is looked up."""
    known = _Types.of([Run(store, recipe.run.name)]).student
    typed = recipe.student.engine.typed(known)
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"engine": typed})})


class _Types(NamedTuple):
    """What `auto` stood for when a run began: on a machine with another CPU it would be another run."""

    student: str | None = None
    teacher: str | None = None
    training: str | None = None

    @staticmethod
    def of(runs: Sequence[Run]) -> "_Types":
        config = next(filter(None, (run.read_json("config.json") for run in runs)), None)
        if config is None:
            return _Types()
        student, teacher = (config[role]["engine"].get("dtype") for role in ("student", "teacher"))
        return _Types(student, teacher, config["training"]["precision"])


def student_identity(recipe: Recipe) -> str:
    """Who the student is; see `model_identity`."""
    return recipe.student.engine.model_identity(recipe.student.ref, recipe.storage, "student.model")


def teacher_identity(recipe: Recipe) -> str:
    """Who the teacher is; one behind an endpoint is known by its name and the revision that the recipe gives it."""
    return recipe.teacher.engine.model_identity(recipe.teacher.ref, recipe.storage, "teacher.engine.model")


@dataclass(frozen=True)
class _Origin:
    model: str
    engine: dict[str, object]


@dataclass(frozen=True)
class _Maker:
    store: Store
    seed: int
    again: frozenset[str]

    def make(
        self,
        name: str,
        origin: _Origin,
        sampling: Sampling,
        conversation: Callable[[Row], tuple[Turn, ...]],
        inputs: tuple[str, ...],
        content: dict[str, object],
    ) -> Stage:
        seed = sampling.seed if sampling.seed is not None else self.seed
        described = {
            "stage": name,
            "model": origin.model,
            "engine": origin.engine,
            "sampling": _identity(sampling, seed),
            **content,
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


def _identity(sampling: Sampling, seed: int) -> dict[str, object]:
    """What of the sampling changes results: a greedy stage has no seed, and its top_p picks nothing."""
    content: dict[str, object] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "chat_template_kwargs": sampling.chat_template_kwargs,
    }
    if sampling.temperature > 0:
        content |= {"top_p": sampling.top_p, "seed": seed}
    return content
