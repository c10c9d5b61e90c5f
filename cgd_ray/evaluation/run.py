"""The evaluation phase: base and trained student on held-out prompts, with the bare prompt, through the same engine."""

from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import structlog
from ray.actor import ActorHandle

from cgd_ray.config.generation import Sampling
from cgd_ray.config.recipe import Recipe
from cgd_ray.data.identity import holdout_position
from cgd_ray.engines.build import build_chain, engine_identity
from cgd_ray.engines.drive import run_chains
from cgd_ray.engines.ledger import Snapshot
from cgd_ray.engines.placement import engine_demand
from cgd_ray.engines.pool import block_rows, work_of
from cgd_ray.engines.progress import Progress
from cgd_ray.engines.stage import TEXTS, WORK, BarePrompt, Row, Stage
from cgd_ray.errors import CgdError
from cgd_ray.grading.answers import gold_of
from cgd_ray.runtime.cluster import read_cluster
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.lease import Lease, held
from cgd_ray.storage.schemas import PROMPTS, RESULTS, TELEMETRY
from cgd_ray.storage.tables import Table

log = structlog.get_logger(__name__)


def heldout_rows(recipe: Recipe, prompts: Table) -> pa.Table:
    """The held-out prompts that can be graded, smallest hash first, at most `evaluation.limit`.

    Raises:
        CgdError: none has a reference that states an answer.
    """
    # Part by part: those to train on may be millions.
    parts = (part.filter(pc.equal(part["split"], "heldout")) for part in prompts.batches())
    heldout = pa.concat_tables([PROMPTS.empty_table(), *(part.drop_columns("part") for part in parts)])
    gradable = [bool(reference and gold_of(reference)) for reference in heldout["reference"].to_pylist()]
    table = heldout.filter(pa.array(gradable, pa.bool_()))
    if len(table) == 0:
        raise CgdError(
            f"evaluation: none of {len(heldout)} held-out prompts has a reference that states an answer (a "
            'number, a box, "#### ...", "the answer is ..."); name another data.reference_column, or set '
            "evaluation.enabled=false"
        )
    if len(table) < len(heldout):
        log.warning("held-out prompts without a gradable reference are left out", count=len(heldout) - len(table))
    order = sorted(range(len(table)), key=lambda i: holdout_position(table["prompt_id"][i].as_py()))
    return table.take(pa.array(order[: recipe.evaluation.limit], pa.int64()))


def run_evaluation(
    recipe: Recipe, store: Store, rows: pa.Table, name: str, model: str, identity: str
) -> tuple[pa.Table, dict[str, Any]]:
    """Answers of one model to the held-out rows, generated where they are not there yet.

    Returns the results (RESULTS schema, one per row) and what this invocation spent (empty where all was there).
    """
    stage = _stage(recipe, store, identity)
    spent: dict[str, Any] = {}
    if _unanswered(stage, rows):
        with held(store, stage.results.folder, wait=True) as lease:
            if work := _unanswered(stage, rows):  # nobody else answered them while this command waited
                log.info(f"evaluating the {name} student", prompts=len(work))
                stage.results.describe(stage.description)
                spent = _generate(recipe, stage, model, (rows, work), lease)
    if not spent:
        log.info(f"evaluation of the {name} student: nothing to do, no engine is loaded")
    table = stage.results.read()
    table = table.filter(pc.is_in(table["parent"], pa.array([stage.parent_of(row) for row in rows.to_pylist()])))
    _require_answers(table, name, recipe.generation.max_failed_fraction)
    return table, spent


def _unanswered(stage: Stage, rows: pa.Table) -> list[Row]:
    done = {row["parent"] for row in stage.results.read().to_pylist() if row["status"] not in stage.again}
    return [_work(row) for row in rows.to_pylist() if stage.parent_of(row) not in done]


def _require_answers(results: pa.Table, name: str, most: float) -> None:
    """Refuse to call a model wrong that was hardly asked."""
    unanswered = [row for row in results.to_pylist() if row["status"] not in ("ok", "truncated")]
    if len(unanswered) > most * len(results):
        raise CgdError(
            f"evaluation of the {name} student: {len(unanswered)} of {len(results)} prompts have no answer, more than "
            f"generation.max_failed_fraction {most}; the last reason: {unanswered[-1]['error']}"
        )


def _stage(recipe: Recipe, store: Store, identity: str) -> Stage:
    section = recipe.evaluation
    # The student's: it drafts, trains and answers with the same.
    template = recipe.generation.draft.chat_template_kwargs
    sampling = Sampling(
        max_tokens=section.max_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        chat_template_kwargs=template,
    )
    seeded = {"top_p": section.top_p, "seed": recipe.run.seed} if section.temperature > 0 else {}
    content = {
        "stage": "evaluation",
        "model": identity,
        "engine": engine_identity(recipe.student.engine),
        "sampling": {"max_tokens": section.max_tokens, "temperature": section.temperature, **seeded} | _given(template),
    }
    digest = fingerprint(content)
    results = Table(store, "evaluation", digest, RESULTS)
    return Stage(
        name="evaluation",
        results=results,
        telemetry=Table(store, "evaluation-telemetry", digest, TELEMETRY),
        model=identity,
        sampling=sampling,
        seed=recipe.run.seed,
        inputs=("prompt",),
        conversation=BarePrompt(),
        attempt=1 + len(results.parts()),
        description=content,
    )


def _given(template: dict[str, Any]) -> dict[str, Any]:
    return {"chat_template_kwargs": template} if template else {}


def _work(row: Row) -> Row:
    return {
        **dict.fromkeys(TEXTS),
        "prompt_id": row["prompt_id"],
        "sample": 0,
        "prompt": row["prompt"],
        "reference": row["reference"],
        "todo": ["evaluation"],
    }


def _generate(
    recipe: Recipe, stage: Stage, model: str, asked: tuple[pa.Table, list[Row]], lease: Lease
) -> dict[str, Any]:
    """Answer the rows of which there is no answer yet; `asked` is all of them, and those."""
    questions, left = asked
    chain = build_chain(
        "student",
        recipe.student.engine,
        (model, recipe.student.revision if model == recipe.student.model else None),
        [stage],
        demand=engine_demand(recipe.student.engine, read_cluster(), sharing=1),
        storage=recipe.storage,
    )
    with Progress({"evaluation": len(left)}) as progress:

        def watch(snapshot: Snapshot) -> None:
            lease.require()
            progress.update(snapshot.tallies)

        while left:
            work = pa.Table.from_pylist(left, schema=WORK)
            sized = replace(chain, rows=len(work))
            make = partial(_blocks, work, block_rows([sized]))
            lost = run_chains([sized], make, watch, recipe.generation.stall_timeout_s)
            before, left = len(left), _unanswered(stage, questions)
            if not lost or len(left) >= before:
                break
            progress.next_engines()
    return progress.summary()["evaluation"]


def _blocks(work: pa.Table, rows: int, _ledger: ActorHandle) -> ray.data.Dataset:
    return work_of(work, rows)
