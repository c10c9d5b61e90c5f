"""Evaluation phase: students answer the questions of all sets, with the bare prompt, through the same engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import structlog
from ray.actor import ActorHandle

from cgd_ray.errors import RERUN, CgdError
from cgd_ray.evaluation.questions import QuestionSet
from cgd_ray.execution.actor_pool import block_rows, sized, work_of
from cgd_ray.execution.chains import build_chain
from cgd_ray.execution.coordinator import Snapshot
from cgd_ray.execution.driver import run_chains
from cgd_ray.execution.progress import Progress
from cgd_ray.inference.options import ModelRef
from cgd_ray.runtime.cluster import read_cluster
from cgd_ray.stages.definitions import evaluation_stage
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.stages.stage import TEXTS, WORK, Stage
from cgd_ray.storage.lease import Lease, hold_lease
from cgd_ray.storage.tables import next_attempt

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Student:
    """A student to evaluate."""

    model: ModelRef
    identity: str
    """Identity of the model, see `EngineOptions.model_identity`."""


@dataclass(frozen=True)
class Answers:
    """What one student answered."""

    results: dict[str, pa.Table]
    """By set: RESULTS schema, one row per question and sample."""
    spent: dict[str, float]
    """Metrics of this invocation, empty if no answer was missing."""


def run_evaluation(run: ResolvedRun, sets: Sequence[QuestionSet], name: str, student: Student) -> Answers:
    """Return one student's answers to the questions of all sets; missing answers are generated.

    Sets that are decoded in the same way are answered by one start of the engine.

    Raises:
        CgdError: an engine cannot start, or too many questions of a set have no answer.
    """
    results, spent = dict[str, pa.Table](), dict[str, float]()
    for group in _by_decoding(sets):
        stage = evaluation_stage(run.recipe, run.store, student.identity, group[0].decoding)
        asked = [_asked(stage, one) for one in group]
        for key, value in _answer(run, stage, name, student.model, _distinct(pa.concat_tables(asked))).items():
            spent[key] = spent.get(key, 0) + value
        table = stage.results.read()
        keys = _keys(table)
        for one, rows in zip(group, asked, strict=True):
            results[one.name] = table.filter(pc.is_in(keys, _keys(rows)))
            _require_answers(
                results[one.name], f"{name} student on {one.name}", run.recipe.generation.max_failed_fraction
            )
    if not spent:
        log.info(f"evaluation of the {name} student: nothing to do, no engine is loaded")
    return Answers(results, spent)


def unanswered(run: ResolvedRun, sets: Sequence[QuestionSet], identity: str) -> int:
    """Count the answers that a student of this identity was not asked for yet."""
    count = 0
    for group in _by_decoding(sets):
        stage = evaluation_stage(run.recipe, run.store, identity, group[0].decoding)
        rows = _distinct(pa.concat_tables([_asked(stage, one) for one in group]))
        count += len(_lacking(stage, rows, stage.results.parts()))
    return count


def _by_decoding(sets: Sequence[QuestionSet]) -> list[list[QuestionSet]]:
    groups: list[list[QuestionSet]] = []
    for one in sets:
        group = next((group for group in groups if group[0].decoding == one.decoding), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return groups


def _asked(stage: Stage, one: QuestionSet) -> pa.Table:
    """Return a set's questions once per sample, with `sample` and the digest `parent` of what an answer is made from.

    Digests are computed one row at a time, since there may be many.
    """
    shown = zip(one.rows["prompt"], one.rows["history"], strict=True)
    parents = [stage.parent_of({"prompt": prompt.as_py(), "history": turns.as_py()}) for prompt, turns in shown]
    rows = one.rows.append_column("parent", pa.array(parents, pa.string()))
    samples = [pa.repeat(pa.scalar(sample, pa.int32()), len(rows)) for sample in range(one.samples)]
    return pa.concat_tables([rows.append_column("sample", sample) for sample in samples])


def _keys(rows: pa.Table) -> pa.Array:
    """Return what tells answers apart: the inputs' digest and the sample."""
    keys = pc.binary_join_element_wise(rows["parent"], rows["sample"].cast(pa.string()), "/")
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys


def _distinct(rows: pa.Table) -> pa.Table:
    """Return the rows without repetitions: two sets may share questions."""
    keys, seen, kept = _keys(rows).to_pylist(), set[str](), list[int]()
    for place, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            kept.append(place)
    return rows.take(pa.array(kept, pa.int64()))


def _answer(run: ResolvedRun, stage: Stage, name: str, model: ModelRef, rows: pa.Table) -> dict[str, float]:
    """Generate the missing answers to the rows; return the metrics."""
    if not len(_lacking(stage, rows, stage.results.parts())):
        return {}
    with hold_lease(run.store, stage.results.folder, wait=True) as lease:
        parts = stage.results.parts()
        if not len(lacking := _lacking(stage, rows, parts)):  # another command answered them during the wait
            return {}
        log.info(f"evaluating the {name} student", answers=len(lacking))
        stage.results.describe(stage.description)
        return _generate(run, replace(stage, attempt=next_attempt(parts)), model, (rows, lacking), lease)


def _lacking(stage: Stage, rows: pa.Table, parts: list[str]) -> pa.Table:
    """Return the rows without an answer in these parts; a result with a status of `stage.again` is no answer."""
    results = stage.results.read(parts, ["prompt_id", "sample", "parent", "status", "attempt"])
    done = results.filter(pc.invert(pc.is_in(results["status"], pa.array(sorted(stage.again), pa.string()))))
    return rows.filter(pc.invert(pc.is_in(_keys(rows), _keys(done))))


def _require_answers(results: pa.Table, where: str, most: float) -> None:
    """Refuse to score a model with too many questions that failed.

    An over-long prompt counts as wrong: this student, trained or not, cannot answer it.
    """
    statuses, errors = results["status"], results["error"]
    failed = errors.filter(pc.is_in(statuses, pa.array(["failed", "quarantined"])))
    over_long = errors.filter(pc.equal(statuses, "over-long"))
    where = f"evaluation of the {where}"
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
    """Return questions as work (WORK schema)."""
    columns = {
        **{name: pa.nulls(len(rows), pa.string()) for name in TEXTS},
        **{name: rows[name] for name in ("prompt_id", "sample", "prompt", "history", "reference")},
        "todo": pa.repeat(pa.scalar(["evaluation"], pa.list_(pa.string())), len(rows)),
    }
    return pa.table(columns).select(WORK.names).cast(WORK)


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
        raise CgdError(f"{passed_by} questions were skipped. Fix: {RERUN}")
    return progress.summary()["evaluation"]


def _blocks(work: pa.Table, rows: int, _coordinator: ActorHandle) -> ray.data.Dataset:
    return work_of(work, rows)
