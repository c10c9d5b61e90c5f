"""Checks before anything starts: paths, files, models, endpoints, templates."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from cgd_ray.config.data import DemoData
from cgd_ray.config.recipe import Recipe
from cgd_ray.config.training import TrackingSection, TrainingSection
from cgd_ray.data.sources import check_source
from cgd_ray.errors import ConfigError
from cgd_ray.evaluation.questions import naming_set
from cgd_ray.methods import METHODS, Contexts, Example
from cgd_ray.models.demo import DEMO_PREFIX
from cgd_ray.models.resolve import local_model
from cgd_ray.prompts.chat import load_tokenizer, require_turns, template_text
from cgd_ray.prompts.chat_encoder import SAMPLE
from cgd_ray.prompts.conversation import History, sample_history, with_system
from cgd_ray.prompts.templates import PromptSet, load_prompts
from cgd_ray.runtime.session import in_job
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.stages.student_encoder import student_encoder
from cgd_ray.storage.filesystem import Store, require_writable


def open_store(recipe: Recipe) -> Store:
    """Return the store of the recipe's root; a relative root becomes absolute.

    Raises:
        ConfigError: the root is relative in a submitted job, whose working directory is one of Ray's package folders.
    """
    root = recipe.run.root
    if "://" not in root:
        path = Path(root).expanduser()
        if not path.is_absolute():
            if in_job():
                raise ConfigError(
                    f"run.root {root} is relative, and a job's working directory is temporary. "
                    "Fix: give an absolute path "
                    "that all nodes share, or s3://bucket/prefix"
                )
            path = Path.cwd() / path
        root = str(path)
    return Store(root, recipe.storage)


def existing_store(recipe: Recipe) -> Store:
    """Return the store of a root that already holds tables: reading must not create a root or call an endpoint.

    Raises:
        ConfigError: nothing was run there yet.
    """
    store = open_store(recipe)
    if not store.exists("tables"):
        raise ConfigError(
            f"run.root {store.root}: nothing was run there yet. Fix: run the recipe first, or correct the path"
        )
    return store


def preflight(recipe: Recipe) -> Store:
    """Check everything that needs I/O but no engine; returns the store.

    Raises:
        CgdError: the first error found, in one line.
    """
    store = open_store(recipe)
    prompts = load_prompts(recipe.generation.prompts)
    if recipe.training.enabled:
        _require_contexts(prompts, recipe.training)
        _require_packages(recipe.training)
        _require_place_for_figures(recipe.training.tracking, store)
    require_writable(store)
    if not isinstance(recipe.data, DemoData):
        check_source(recipe.data, recipe.storage)
    for one in recipe.evaluation.sets if recipe.evaluation.enabled else []:
        if one.data:
            with naming_set(one.name):
                check_source(one.data, recipe.storage)
    student, teacher = recipe.student, recipe.teacher
    student.engine.model_identity(student.ref, recipe.storage, "student.model")
    teacher.engine.model_identity(teacher.ref, recipe.storage, "teacher.engine.model")
    student.engine.check("student.engine")
    _require_templates(recipe)
    teacher.engine.check("teacher.engine")
    return replace(store, patient=True)


def require_histories(run: ResolvedRun) -> None:
    """Check that the chat templates render the turns before the prompts, known only after all prompts are read.

    Raises:
        ConfigError: a template drops or refuses a turn.
    """
    prompts = run.prompts
    histories = [
        sample_history(exchanges, system=system)
        for exchanges in sorted({0, prompts.exchanges})
        for system in sorted({False, prompts.systems > 0})
        if exchanges or system
    ]
    if histories:
        _require_templates(run.recipe, histories)


def _require_templates(recipe: Recipe, histories: Sequence[History] = ()) -> None:
    """Check, before drafts are paid for, that the templates of student and teacher work with these histories."""
    student, teacher, generation = recipe.student, recipe.teacher.engine, recipe.generation
    if student.engine.has_weights and not student.model.startswith(DEMO_PREFIX):  # demo models are instruct models
        student_encoder(recipe, histories)
    if teacher.has_weights and not teacher.model.startswith(DEMO_PREFIX):
        template = template_text(teacher.chat_template, "teacher.engine.chat_template")
        folder = local_model(teacher.model, teacher.revision, recipe.storage, weights=False)
        tokenizer = load_tokenizer(folder, template, "teacher")
        seen = [((), generation.critique), (sample_history(1, system=False), generation.refine)]
        if generation.needs_answer:
            before = (with_system((), recipe.data.system_prompt), *histories)
            seen += [(history, generation.answer) for history in before]
        for history, sampling in seen:
            require_turns(tokenizer, (*history, *SAMPLE.turns), "teacher", sampling.chat_template_kwargs)


def _require_contexts(prompts: PromptSet, training: TrainingSection) -> None:
    """Render the context of each method once: a template may name a value that one of the methods lacks."""
    texts = ("x", "y'", "c", "y^")
    example = Example("", 0, *texts, answer="y_T", reference="y_ref", other_critique="c'")
    for name in sorted(training.methods):
        METHODS[name].conversation(example, Contexts(prompts, training.context == "multi-turn"))


def _require_packages(training: TrainingSection) -> None:
    is_quantized = training.lora is not None and training.lora.quantization is not None
    wanted = {
        "mlflow": (training.tracking.mlflow, "training.tracking.mlflow", "mlflow-skinny"),
        "liger_kernel": (training.liger, "training.liger", "liger-kernel"),
        "bitsandbytes": (is_quantized, "training.lora.quantization", "bitsandbytes"),
    }
    for module, (is_wanted, key, package) in wanted.items():
        if is_wanted and find_spec(module) is None:
            raise ConfigError(f"{key}: a package is missing. Fix: pip install {package} on every node")


def _require_place_for_figures(tracking: TrackingSection, store: Store) -> None:
    if tracking.mlflow and tracking.mlflow_uri is None and store.is_s3:
        raise ConfigError("training.tracking.mlflow: the root is on S3. Fix: give training.tracking.mlflow_uri, too")
