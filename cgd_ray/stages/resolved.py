"""A recipe with everything that it names looked up once, after the checks; the phases use it instead of the recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from cgd_ray.config.engine import TeacherSection
from cgd_ray.config.recipe import Recipe
from cgd_ray.config.training import TrainingResources
from cgd_ray.data.prepare import PreparedPrompts, prepare_prompts
from cgd_ray.models.resolve import pinned_model
from cgd_ray.prompts.chat_encoder import ChatEncoder
from cgd_ray.prompts.templates import PromptSet, load_prompts
from cgd_ray.runtime.device import fastest_type
from cgd_ray.stages.definitions import Origin, StageMaker, Stages, generation_stages
from cgd_ray.stages.rows import Join
from cgd_ray.stages.student_encoder import student_encoder
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Run
from cgd_ray.storage.tables import Table


@dataclass(frozen=True)
class ResolvedRun:
    """Everything that the phases of one run need."""

    recipe: Recipe
    """The recipe with commits, absolute paths, texts and types in place of what the user wrote (`pin_models`)."""
    store: Store
    templates: PromptSet
    student_identity: str
    """Identity of the student model, independent of the path that it is loaded from."""
    stages: Stages

    @property
    def folder(self) -> Run:
        """The run's own folder in the store."""
        return Run(self.store, self.recipe.run.name)

    @cached_property
    def prompts(self) -> PreparedPrompts:
        """The prompts, read and written at first use.

        Raises:
            ConfigError: the source cannot be used; the text is one line that names file and row.
        """
        return prepare_prompts(self.recipe, self.store)

    @cached_property
    def encoder(self) -> ChatEncoder:
        """The student's tokenizer and chat template, loaded at first use.

        Raises:
            ConfigError: the student does not exist, or has no usable chat template.
        """
        return student_encoder(self.recipe)

    def join(self, prompts: Table | None = None) -> Join:
        """Join the rows to train on with their generated texts: of the run's prompts, or of those in `prompts`."""
        return Join(prompts or self.prompts.table, self.recipe.generation.draft.samples, self.stages.all)


def resolve(recipe: Recipe, store: Store, *, runs: Sequence[str] = ()) -> ResolvedRun:
    """Look up everything that a recipe names; `runs` as in `pin_models`.

    Raises:
        ConfigError: a model, a file or a template does not exist.
    """
    return open_run(pin_models(recipe, store, runs=runs), store)


def open_run(recipe: Recipe, store: Store) -> ResolvedRun:
    """Build the run of a recipe whose models are pinned.

    Raises:
        ConfigError: a model or a template does not exist.
    """
    templates = load_prompts(recipe.generation.prompts)
    student, teacher = recipe.student, recipe.teacher
    student_identity = student.engine.model_identity(student.ref, recipe.storage, "student.model")
    teacher_identity = teacher.engine.model_identity(teacher.ref, recipe.storage, "teacher.engine.model")
    again = {"failed", *(["quarantined"] if recipe.generation.retry_quarantined else [])}
    stages = generation_stages(
        recipe.generation,
        StageMaker(store, recipe.run.seed, frozenset(again)),
        templates,
        Origin(student_identity, student.engine.identity()),
        Origin(teacher_identity, teacher.engine.identity()),
    )
    return ResolvedRun(recipe, store, templates, student_identity, stages)


def pin_models(recipe: Recipe, store: Store, *, runs: Sequence[str] = ()) -> Recipe:
    """Return the recipe with everything that fingerprints need made explicit.

    Commits replace branches and tags of hub models, absolute paths replace relative ones, and texts replace chat
    template files. Compute types replace `auto`: those that the run has, else the fastest.

    Args:
        recipe: recipe as the user wrote it.
        store: store of the root.
        runs: names of the runs that share one set of types, if there are several; by default the recipe's run.

    Raises:
        ConfigError: a model or a file does not exist.
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
    """Return the recipe with the compute type of the run's evaluated student; no model is looked up."""
    known = _Types.of([Run(store, recipe.run.name)]).student
    typed = recipe.student.engine.typed(known)
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"engine": typed})})


class _Types(NamedTuple):
    """Types that `auto` resolved to when a run began: on a machine with another CPU, it would be another run."""

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
