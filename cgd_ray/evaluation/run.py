"""Evaluation phase: base and trained student on held-out prompts, with the bare prompt, through the same engine."""

from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import structlog
from ray.actor import ActorHandle

from cgd_ray.config.recipe import Recipe
from cgd_ray.data.prompt_id import holdout_position
from cgd_ray.errors import RERUN, CgdError
from cgd_ray.execution.actor_pool import block_rows, sized, work_of
from cgd_ray.execution.chains import build_chain
from cgd_ray.execution.coordinator import Snapshot
from cgd_ray.execution.driver import run_chains
from cgd_ray.execution.progress import Progress
from cgd_ray.grading.answers import gold_of
from cgd_ray.inference.options import ModelRef
from cgd_ray.runtime.cluster import read_cluster
from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.stages.definitions import evaluation_stage
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.stages.stage import TEXTS, WORK, Stage
from cgd_ray.storage.lease import Lease, hold_lease
from cgd_ray.storage.schemas import PROMPTS
from cgd_ray.storage.tables import Table, next_attempt

log = structlog.get_logger(__name__)


def heldout_rows(recipe: Recipe, prompts: Table) -> pa.Table:
    """Return the held-out prompts that can be graded, smallest hash first, at most `evaluation.limit`.

    Parts are read in parallel, and only about as many rows as requested are held in memory. There may be millions of
    training rows, and millions in the tenth that is held out.

    Raises:
        CgdError: no held-out prompt has a reference that states an answer.
    """
    limit = recipe.evaluation.limit
    chosen, heldout, gradable = PROMPTS.empty_table(), 0, 0
    for found in parallel_map(partial(_heldout, prompts, limit), prompts.parts()):
        chosen = pa.concat_tables([chosen, found.rows])
        if limit is not None and len(chosen) > 2 * limit:
            chosen = _first(chosen, limit)
        heldout, gradable = heldout + found.heldout, gradable + found.gradable
    if not gradable:
        raise CgdError(
            f"evaluation: none of {heldout} held-out prompts has a reference that states an answer (a "
            'number, a box, "#### ...", "the answer is ..."). Fix: name another data.reference_column, or set '
            "evaluation.enabled=false"
        )
    if gradable < heldout:
        log.warning("held-out prompts without a gradable reference are skipped", count=heldout - gradable)
    if limit is not None and gradable > limit:
        log.info(
            f"evaluation asks {limit} of {gradable} held-out prompts (evaluation.limit); the others are not trained on "
            "either, unless data.holdout holds out fewer"
        )
    return _first(chosen, limit)


@dataclass(frozen=True)
class _Heldout:
    """Held-out rows of one part of the prompts."""

    rows: pa.Table  # gradable ones, at most `evaluation.limit`
    heldout: int
    gradable: int


def _heldout(prompts: Table, limit: int | None, part: str) -> _Heldout:
    rows = pa.concat_tables(prompts.batches([part])).drop_columns("part")
    rows = rows.filter(pc.equal(rows["split"], "heldout"))
    references = (reference.as_py() for reference in rows["reference"])
    gradable = rows.filter(pa.array([bool(text and gold_of(text)) for text in references], pa.bool_()))
    return _Heldout(_first(gradable, limit), len(rows), len(gradable))


def _first(rows: pa.Table, limit: int | None) -> pa.Table:
    """Return the rows with the smallest hashes, in hash order."""
    positions = [holdout_position(identity.as_py()) for identity in rows["prompt_id"]]
    order = sorted(range(len(rows)), key=positions.__getitem__)
    return rows.take(pa.array(order[:limit], pa.int64()))


@dataclass(frozen=True)
class Student:
    """A student to evaluate."""

    model: ModelRef
    identity: str
    """Identity of the model, see `EngineOptions.model_identity`."""


def run_evaluation(run: ResolvedRun, rows: pa.Table, name: str, student: Student) -> tuple[pa.Table, dict[str, float]]:
    """Return one student's answers to the held-out rows; missing answers are generated.

    Returns:
        Results (RESULTS schema, one per row), and the metrics of this invocation (empty if nothing was missing).

    Raises:
        CgdError: an engine cannot start, or too many rows have no answer.
    """
    stage = evaluation_stage(run.recipe, run.store, student.identity)
    parts, spent = stage.results.parts(), dict[str, float]()
    rows = _with_parents(stage, rows)
    if len(_lacking(stage, rows, parts)):
        with hold_lease(run.store, stage.results.folder, wait=True) as lease:
            parts = stage.results.parts()
            if len(lacking := _lacking(stage, rows, parts)):  # no other command answered them during the wait
                log.info(f"evaluating the {name} student", prompts=len(lacking))
                stage.results.describe(stage.description)
                stage = replace(stage, attempt=next_attempt(parts))
                spent = _generate(run, stage, student.model, (rows, lacking), lease)
                parts = stage.results.parts()
    if not spent:
        log.info(f"evaluation of the {name} student: nothing to do, no engine is loaded")
    table = stage.results.read(parts)
    table = table.filter(pc.is_in(table["parent"], rows["parent"].combine_chunks()))
    _require_answers(table, name, run.recipe.generation.max_failed_fraction)
    return table, spent


def unanswered(run: ResolvedRun, rows: pa.Table, identity: str) -> int:
    """Count the held-out rows that a student of this identity was not asked yet."""
    stage = evaluation_stage(run.recipe, run.store, identity)
    return len(_lacking(stage, _with_parents(stage, rows), stage.results.parts()))


def _with_parents(stage: Stage, rows: pa.Table) -> pa.Table:
    """Add the digest of each answer's inputs, one row at a time, since there may be many."""
    shown = zip(rows["prompt"], rows["history"], strict=True)
    parents = [stage.parent_of({"prompt": prompt.as_py(), "history": turns.as_py()}) for prompt, turns in shown]
    return rows.append_column("parent", pa.array(parents, pa.string()))


def _lacking(stage: Stage, rows: pa.Table, parts: list[str]) -> pa.Table:
    """Return the rows without an answer in these parts; a result with a status of `stage.again` is no answer."""
    results = stage.results.read(parts, ["prompt_id", "sample", "parent", "status", "attempt"])
    done = results.filter(pc.invert(pc.is_in(results["status"], pa.array(sorted(stage.again), pa.string()))))
    return rows.filter(pc.invert(pc.is_in(rows["parent"], done["parent"].combine_chunks())))


def _require_answers(results: pa.Table, name: str, most: float) -> None:
    """Refuse to score a model with too many prompts that failed.

    An over-long prompt counts as wrong: this student, trained or not, cannot answer it.
    """
    statuses, errors = results["status"], results["error"]
    failed = errors.filter(pc.is_in(statuses, pa.array(["failed", "quarantined"])))
    over_long = errors.filter(pc.equal(statuses, "over-long"))
    where = f"evaluation of the {name} student"
    if len(failed) > most * len(results):
        raise CgdError(
            f"{where}: {len(failed)} of {len(results)} prompts have no answer, more than "
            f"generation.max_failed_fraction {most}. The last error: {failed[-1]}"
        )
    if len(over_long) and len(failed) + len(over_long) == len(results):
        raise CgdError(f"{where}: none of {len(results)} prompts has an answer. The last error: {over_long[-1]}")
    if len(over_long):
        log.warning(f"{where}: prompts leave no room for an answer, and count as wrong", prompts=len(over_long))


def _work(rows: pa.Table) -> pa.Table:
    """Return held-out rows as work (WORK schema)."""
    columns = {
        **{name: pa.nulls(len(rows), pa.string()) for name in TEXTS},
        **{name: rows[name] for name in ("prompt_id", "prompt", "history", "reference")},
        "sample": pa.repeat(pa.scalar(0, pa.int32()), len(rows)),
        "todo": pa.repeat(pa.scalar(["evaluation"], pa.list_(pa.string())), len(rows)),
    }
    return pa.table(columns, schema=WORK)


def _generate(
    run: ResolvedRun, stage: Stage, model: ModelRef, asked: tuple[pa.Table, pa.Table], lease: Lease
) -> dict[str, float]:
    """Answer the rows that have no answer yet; `asked` holds all rows, and those without an answer."""
    questions, left = asked
    recipe = run.recipe
    options = recipe.student.engine
    demand = options.demand(read_cluster(), sharing=1, key="student.engine")
    chain = build_chain("student", options, model, [stage], demand=demand, storage=recipe.storage)
    with Progress({"evaluation": len(left)}) as progress:

        def watch(snapshot: Snapshot) -> None:
            lease.require()
            progress.update(snapshot.metrics)

        while len(left):
            fitting = sized(chain, len(left))
            make = partial(_blocks, _work(left), block_rows([fitting]))
            lost = run_chains([fitting], make, watch, recipe.generation.stall_timeout_s)
            before, left = len(left), _lacking(stage, questions, stage.results.parts())
            if not lost or len(left) >= before:
                break
            progress.next_engines()
    # A prompt that failed was asked, so it does not count as skipped.
    if passed_by := len(_lacking(replace(stage, again=frozenset()), questions, stage.results.parts())):
        raise CgdError(f"{passed_by} held-out prompts were skipped. Fix: {RERUN}")
    return progress.summary()["evaluation"]


def _blocks(work: pa.Table, rows: int, _coordinator: ActorHandle) -> ray.data.Dataset:
    return work_of(work, rows)
