"""Run the phases in order: prompts, generation, curation, training, evaluation, report. Finished work is reused."""

import time
from collections.abc import Callable, Set
from dataclasses import asdict, replace
from typing import Any, Literal, TypeVar, get_args

import structlog

from cgd_ray.config.recipe import Recipe
from cgd_ray.curation.run import CurationResult, run_curation
from cgd_ray.errors import CgdError
from cgd_ray.evaluation.gates import judge_gates
from cgd_ray.evaluation.quality import generated_quality
from cgd_ray.evaluation.questions import QuestionSet, question_sets
from cgd_ray.evaluation.run import Student, run_evaluation
from cgd_ray.evaluation.scores import Graded, compare, grade_results, score
from cgd_ray.evaluation.verdicts import write_verdicts
from cgd_ray.generation.planning import plan
from cgd_ray.generation.run import GenerationResult, run_generation
from cgd_ray.inference.options import ModelRef
from cgd_ray.models.resolve import model_identity
from cgd_ray.pipeline.preflight import require_histories
from cgd_ray.report.outcome import (
    CurationSummary,
    EvaluationSummary,
    GenerationSummary,
    Outcome,
    Phase,
    PhaseCost,
    PromptCounts,
    ResultT,
    SetSummary,
    TrainingSummary,
)
from cgd_ray.report.summary import write_report
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.lease import hold_lease
from cgd_ray.storage.runs import JsonDict, deciding_settings
from cgd_ray.training.launch.resources import check_room, worker_resources

T = TypeVar("T")
log = structlog.get_logger(__name__)


PhaseName = Literal["generate", "train", "evaluate"]
PHASES: frozenset[PhaseName] = frozenset(get_args(PhaseName))


def run_pipeline(run: ResolvedRun, phases: Set[PhaseName] = PHASES) -> Outcome:
    """Run the phases in order; requires a connection to Ray and a passed `preflight`.

    With fewer than all phases, the earlier ones must be complete.

    Raises:
        CgdError: a phase cannot continue; finished work is kept, and the same command resumes the run.
    """
    with hold_lease(run.store, f"runs/{run.recipe.run.name}", wait=False):
        return _run_phases(run, phases)


def _run_phases(run: ResolvedRun, phases: Set[PhaseName]) -> Outcome:
    recipe = run.recipe
    config = recipe.model_dump(mode="json")
    run.folder.write_json("config.json", config)
    settings, recorded = deciding_settings(config), dict[str, Phase[Any]]()

    def keep(name: str, phase: Phase[ResultT]) -> Phase[ResultT]:
        recorded[name] = phase.recorded(run.folder, name, settings)
        return phase

    prompts = keep("prompts", _prompts(run))
    require_histories(run)
    if "generate" not in phases:
        _require_generated(run)
    # Fails, before anything is paid for, if there is nothing to grade against.
    questions = question_sets(run) if recipe.evaluation.enabled else None
    _require_room(run, phases)
    generated, generation = _generate(run, may_generate="generate" in phases)
    keep("generation", generation)
    curated, curation = _curate(run, generated)
    outcome = Outcome(_url(run), prompts, generation, keep("curation", curation))
    if recipe.training.enabled and phases & {"train", "evaluate"}:
        outcome = replace(outcome, training=keep("training", _train(run, curated, may_train="train" in phases)))
    if questions is not None and "evaluate" in phases:
        evaluation = _evaluate(run, questions, generated, outcome.training)
        outcome = replace(outcome, evaluation=keep("evaluation", evaluation))
    if "evaluate" in phases:
        _finish(run, Outcome(outcome.run, **recorded), settings)
    return outcome


def _finish(run: ResolvedRun, recorded: Outcome, settings: JsonDict) -> None:
    """Write the report, then the manifest: its presence means that the run is complete for its settings."""
    write_report(run.folder, recorded)
    run.folder.write_json("manifest.json", asdict(recorded) | {"config": settings})


def _url(run: ResolvedRun) -> str:
    return run.store.url(run.folder.path("")).rstrip("/")


def _require_room(run: ResolvedRun, phases: Set[PhaseName]) -> None:
    """Check, before hours of generation, that the training after it can start."""
    training = run.recipe.training
    is_next = training.enabled and training.launcher == "ray" and "train" in phases
    if is_next and run.folder.read_json("student/manifest.json") is None:
        check_room(training, worker_resources(training), is_next=False)


def _prompts(run: ResolvedRun) -> Phase[PromptCounts]:
    prompts, seconds = _timed(lambda: run.prompts)
    counts = PromptCounts(prompts.train, prompts.heldout, prompts.duplicates, prompts.skipped)
    return Phase(counts, PhaseCost(seconds, prompts.reused))


def _generate(run: ResolvedRun, *, may_generate: bool) -> tuple[GenerationResult, Phase[GenerationSummary]]:
    """Generate drafts, answers, critiques and refinements; without `may_generate`, return the existing ones."""
    result, seconds = _timed(lambda: run_generation(run, may_generate=may_generate))
    summary = GenerationSummary(result.counts, run.recipe.generation.critique.reference)
    return result, Phase(summary, PhaseCost(seconds, result.reused, result.metrics, result.execution))


def _curate(run: ResolvedRun, generated: GenerationResult) -> tuple[CurationResult, Phase[CurationSummary]]:
    """Make training examples from the generated rows."""
    curated, seconds = _timed(lambda: run_curation(run.recipe, generated.join))
    return curated, Phase(CurationSummary(curated.kept, curated.dropped), PhaseCost(seconds, curated.reused))


def _train(run: ResolvedRun, curated: CurationResult, *, may_train: bool) -> Phase[TrainingSummary]:
    """Train the student and export it into the run; without `may_train`, return the existing one."""
    from cgd_ray.training.launch.ray_train import run_training  # torch takes seconds, which the other phases save

    trained, seconds = _timed(lambda: run_training(run, curated.examples, may_train=may_train))
    return Phase(TrainingSummary(run.recipe.training.method, trained.result), PhaseCost(seconds, trained.reused))


def _evaluate(
    run: ResolvedRun, sets: list[QuestionSet], generated: GenerationResult, training: Phase[TrainingSummary] | None
) -> Phase[EvaluationSummary]:
    """Compare base and trained student on the questions of all sets."""
    recipe, started = run.recipe, time.monotonic()
    students = {"base": Student(recipe.student.ref, run.student_identity)}
    if training:
        students["trained"] = trained_student(run, training.result.student.student_name)
    answered = {name: run_evaluation(run, sets, name, student) for name, student in students.items()}
    graded = {
        name: {one.name: grade_results(answers.results[one.name], one) for one in sets}
        for name, answers in answered.items()
    }
    write_verdicts(run.folder, sets, graded)
    scored = {one.name: _scored(one, {name: marks[one.name] for name, marks in graded.items()}, recipe) for one in sets}
    gates = judge_gates(run.folder, recipe.evaluation, recipe.run.seed) if training else []
    summary = EvaluationSummary(scored, generated_quality(generated.join), gates)
    spent = {name: answers.spent for name, answers in answered.items() if answers.spent}
    return Phase(summary, PhaseCost(_since(started), not spent, spent))


def _scored(one: QuestionSet, graded: dict[str, Graded], recipe: Recipe) -> SetSummary:
    scores = {name: score(marks, one.rows, recipe.evaluation.confidence) for name, marks in graded.items()}
    difference = compare(graded["base"], graded["trained"], recipe) if "trained" in graded else None
    return SetSummary(one.role, scores["base"], scores.get("trained"), difference)


def trained_student(run: ResolvedRun, name: str) -> Student:
    """Return the student that training exported to this folder of the store."""
    path = run.store.url(name)
    return Student(ModelRef(path), model_identity(path, None, run.store.storage, "student"))


def _require_generated(run: ResolvedRun) -> None:
    current = plan(run.join())
    lacking = ", ".join(f"{rows} of {stage}" for stage, rows in current.todo.items() if rows)
    if current.untried:
        raise CgdError(f"generation is not complete (still to do: {lacking}). Fix: run jobs/generate.py first")
    if lacking:
        log.warning("failed rows are skipped; jobs/generate.py tries them again", lacking=lacking)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.monotonic()
    result = work()
    return result, _since(started)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 2)
