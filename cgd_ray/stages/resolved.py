"""A recipe with all that it names looked up once, after the checks; it goes through the phases in its place."""

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
    """Everything that the phases of one run need to know."""

    recipe: Recipe
    """With commits, whole paths, texts and types in place of what a person wrote (`pin_models`)."""
    store: Store
    templates: PromptSet
    student_identity: str
    """What makes the student this model, whatever path it is reached by."""
    stages: Stages

    @property
    def folder(self) -> Run:
        """The run's own folder in the store."""
        return Run(self.store, self.recipe.run.name)

    @cached_property
    def prompts(self) -> PreparedPrompts:
        """The prompts, read and written at the first use.

        Raises:
            ConfigError: the source cannot be used; one line that names file and row.
        """
        return prepare_prompts(self.recipe, self.store)

    @cached_property
    def encoder(self) -> ChatEncoder:
        """The student's tokenizer and chat template, loaded at the first use.

        Raises:
            ConfigError: the student is not there, or has no usable chat template.
        """
        return student_encoder(self.recipe)

    def join(self, prompts: Table | None = None) -> Join:
        """The rows to train on with what is generated of them; of the run's prompts, or of a table of some."""
        return Join(prompts or self.prompts.table, self.recipe.generation.draft.samples, self.stages.all)


def resolve(recipe: Recipe, store: Store, *, runs: Sequence[str] = ()) -> ResolvedRun:
    """Look up all that a recipe names; `runs` as in `pin_models`.

    Raises:
        ConfigError: a model, a file or a template is not there.
    """
    return open_run(pin_models(recipe, store, runs=runs), store)


def open_run(recipe: Recipe, store: Store) -> ResolvedRun:
    """The run of a recipe whose models are pinned.

    Raises:
        ConfigError: a model or a template is not there.
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
