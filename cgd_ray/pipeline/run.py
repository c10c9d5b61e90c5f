"""The whole way: prompts, generation, curation, training, evaluation, report. What is done is not done again."""

import time
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeVar, get_args

import pyarrow as pa
import structlog

from cgd_ray.config.recipe import Recipe
from cgd_ray.curation.run import CurationResult, run_curation
from cgd_ray.data.prepare import PreparedPrompts, prepare_prompts
from cgd_ray.errors import CgdError
from cgd_ray.evaluation.quality import generated_quality
from cgd_ray.evaluation.run import heldout_rows, run_evaluation
from cgd_ray.evaluation.scores import accuracy_table, compare, grade_results
from cgd_ray.generation.planning import plan
from cgd_ray.generation.run import GenerationResult, join_of, run_generation
from cgd_ray.models.resolve import model_identity
from cgd_ray.pipeline.preflight import require_histories
from cgd_ray.report.summary import write_report
from cgd_ray.stages.definitions import build_stages, student_identity
from cgd_ray.stages.rows import Join
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.lease import held
from cgd_ray.storage.runs import Document, Run, telling
from cgd_ray.training.dataset.chat_encoder import student_encoder
from cgd_ray.training.launch.resources import check_room, worker_resources
from cgd_ray.training.launch.training_run import TrainingResult

T = TypeVar("T")
log = structlog.get_logger(__name__)


Phase = Literal["generate", "train", "evaluate"]
PHASES: frozenset[Phase] = frozenset(get_args(Phase))


@dataclass
class Outcome:
    """What a run did and measured; becomes the run's `manifest.json`."""

    run: str
    prompts: Document = field(default_factory=dict)
    generation: Document = field(default_factory=dict)
    curation: Document = field(default_factory=dict)
    training: Document = field(default_factory=dict)
    evaluation: Document = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def run_pipeline(recipe: Recipe, store: Store, phases: Set[Phase] = PHASES) -> Outcome:
    """Run the phases in order; Ray is connected and `preflight` has passed.

    With fewer than all phases, the earlier ones must be complete.

    Raises:
        CgdError: a phase cannot go on; what is done stays done, and the same command continues.
    """
    with held(store, f"runs/{recipe.run.name}", wait=False):
        return _run_phases(recipe, store, phases)


def _run_phases(recipe: Recipe, store: Store, phases: Set[Phase]) -> Outcome:
    run = Run(store, recipe.run.name)
    config = recipe.model_dump(mode="json")
    run.write_json("config.json", config)
    settings = telling(config)
    outcome = Outcome(run=store.url(run.path("")).rstrip("/"))
    prompts = _timed(outcome, "prompts", lambda: prepare_prompts(recipe, store))
    outcome.prompts = _prompt_counts(prompts)
    require_histories(recipe, prompts)
    if "generate" not in phases:
        _require_generated(recipe, store, prompts)
    # Before anything is paid for: is there something to grade against?
    questions = heldout_rows(recipe, prompts.table) if recipe.evaluation.enabled else None
    on_ray = recipe.training.enabled and recipe.training.launcher == "ray"
    if "train" in phases and on_ray and run.read_json("student/manifest.json") is None:
        check_room(recipe.training, worker_resources(recipe.training), is_next=False)  # before the hours of generation
    may = "generate" in phases
    generated = _timed(outcome, "generation", lambda: generate(recipe, store, prompts, outcome, may_generate=may))
    recorded = {"generation": _record(run, "generation", outcome.generation, outcome, settings)}
    curated = _timed(outcome, "curation", lambda: curate(recipe, store, generated.join, outcome))
    if recipe.training.enabled and phases & {"train", "evaluate"}:
        _timed(outcome, "training", lambda: train(recipe, store, curated, outcome, may_train="train" in phases))
        recorded["training"] = _record(run, "training", outcome.training, outcome, settings)
    if questions is not None and "evaluate" in phases:
        _timed(outcome, "evaluation", lambda: evaluate(recipe, store, questions, outcome))
        outcome.evaluation["generated"] = generated_quality(generated.join)
        recorded["evaluation"] = _record(run, "evaluation", outcome.evaluation, outcome, settings)
    if "evaluate" in phases:
        _finish(run, outcome, recorded, settings)
    return outcome


def _record(run: Run, phase: str, document: Document, outcome: Outcome, settings: Document) -> Document:
    """Put a phase's outcome into the run, with what it had cost when it was done, this time or earlier."""
    work = {"reused": _idle(document), "seconds": outcome.seconds[phase]}
    return run.record(f"{phase}.json", document | {"work": work}, settings)


def _finish(run: Run, outcome: Outcome, recorded: Document, config: Document) -> None:
    """Report and manifest, which comes last: all of the run is there, for the settings that it names."""
    seconds = {phase: document["work"]["seconds"] for phase, document in recorded.items()}
    manifest = asdict(outcome) | recorded | {"seconds": outcome.seconds | seconds}
    write_report(run, manifest)
    run.write_json("manifest.json", manifest | {"config": config})


def _idle(document: Document) -> bool:
    """Whether the phase found all its work done."""
    models = [document[name] for name in ("base", "trained") if name in document]
    return not any(model["spent"] for model in models) if models else bool(document["reused"])


def generate(
    recipe: Recipe, store: Store, prompts: PreparedPrompts, outcome: Outcome, *, may_generate: bool = True
) -> GenerationResult:
    """Drafts, answers, critiques, refinements; without `may_generate`, those that are there."""
    result = run_generation(recipe, store, prompts.table, may_generate=may_generate)
    outcome.generation = {
        "execution": result.execution,
        "reused": result.reused,
        "stages": result.counts,
        "spent": result.tallies,
        "critique_reference": recipe.generation.critique.reference,
    }
    return result


def curate(recipe: Recipe, store: Store, joined: Join, outcome: Outcome) -> CurationResult:
    """Training examples from the generated rows."""
    curated = run_curation(recipe, store, joined)
    outcome.curation = {"kept": curated.kept, "dropped": curated.dropped, "reused": curated.reused}
    return curated


def train(
    recipe: Recipe, store: Store, curated: CurationResult, outcome: Outcome, *, may_train: bool = True
) -> TrainingResult:
    """The trained student, exported into the run; without `may_train`, the one that is there already."""
    from cgd_ray.training.launch.ray_train import run_training  # torch: seconds, which the other phases do not cost

    result = run_training(
        recipe, store, curated.examples, student_encoder(recipe), student_identity(recipe), may_train=may_train
    )
    outcome.training = asdict(result) | {"method": recipe.training.method}
    return result


def evaluate(recipe: Recipe, store: Store, rows: pa.Table, outcome: Outcome) -> None:
    """Base against trained student on the held-out prompts (PROMPTS schema)."""
    confidence = recipe.evaluation.confidence
    models = {"base": (recipe.student.model, student_identity(recipe))}
    if outcome.training:
        path = store.url(outcome.training["student_name"])
        models["trained"] = (path, model_identity(path, None, store.storage, "student"))
    graded = {}
    for name, (model, identity) in models.items():
        results, spent = run_evaluation(recipe, store, rows, name, model, identity)
        graded[name] = grade_results(results, rows)
        outcome.evaluation[name] = accuracy_table(graded[name], rows, confidence) | {"spent": spent}
    if "trained" in graded:
        outcome.evaluation["difference"] = compare(graded["base"], graded["trained"], recipe)


def _require_generated(recipe: Recipe, store: Store, prompts: PreparedPrompts) -> None:
    current = plan(join_of(recipe, prompts.table, build_stages(recipe, store)))
    lacking = ", ".join(f"{rows} of {stage}" for stage, rows in current.todo.items() if rows)
    if current.untried:
        raise CgdError(f"generation is not complete (still to do: {lacking}): run jobs/generate.py first")
    if lacking:
        log.warning("rows that failed are left out; jobs/generate.py tries them again", lacking=lacking)


def _prompt_counts(prompts: PreparedPrompts) -> Document:
    return {name: getattr(prompts, name) for name in ("train", "heldout", "duplicates", "skipped", "reused")}


def _timed(outcome: Outcome, phase: str, work: Callable[[], T]) -> T:
    started = time.monotonic()
    result = work()
    outcome.seconds[phase] = round(time.monotonic() - started, 2)
    return result
