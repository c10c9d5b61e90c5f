"""The questions of each evaluation set: held-out prompts of the run's own source, or those of another source."""

import contextlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cgd_ray.config.data import ColumnData
from cgd_ray.config.evaluation import HELDOUT, Decoding, EvaluationSet
from cgd_ray.config.recipe import Recipe
from cgd_ray.data.prompt_id import holdout_position
from cgd_ray.data.splits import Prompt, PromptDeduplicator, all_prompts
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.grading.answers import gold_of
from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.schemas import PROMPTS
from cgd_ray.storage.tables import Table

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one set, which every student answers."""

    name: str
    role: str
    rows: pa.Table
    """PROMPTS schema, in the order of their hashes; each has a reference that can be graded."""
    decoding: Decoding
    samples: int


def question_sets(run: ResolvedRun) -> list[QuestionSet]:
    """Return the sets of the recipe, each with at most its limit of questions.

    Raises:
        ConfigError: a source cannot be used.
        CgdError: a set has no question that can be graded.
    """
    return [_question_set(run, one) for one in run.recipe.evaluation.sets]


def _question_set(run: ResolvedRun, one: EvaluationSet) -> QuestionSet:
    return QuestionSet(one.name, one.role, _rows(run, one), run.recipe.evaluation.decoding(one), one.samples)


def _rows(run: ResolvedRun, one: EvaluationSet) -> pa.Table:
    limit = one.limit or run.recipe.evaluation.limit
    if one.data is None:
        return heldout_rows(run.prompts.table, limit)
    with naming_set(one.name):
        return _source_rows(run.recipe, one.name, one.data, limit)


@contextlib.contextmanager
def naming_set(name: str) -> Iterator[None]:
    """Name the set in errors of its source."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"evaluation.sets {name}: {error}") from error


def _source_rows(recipe: Recipe, name: str, data: ColumnData, limit: int | None) -> pa.Table:
    """Return the distinct questions of a source that can be graded, smallest hash first."""
    data = data.model_copy(update={"system_prompt": data.system_prompt or recipe.data.system_prompt})
    merger = PromptDeduplicator(data.prompt_template)
    found = _Counted(all_prompts(data, recipe.storage, merger))
    gradable = (prompt for prompt in found if prompt.row.reference and gold_of(prompt.row.reference))
    chosen = sorted(gradable, key=_position) if limit is None else heapq.nsmallest(limit, gradable, key=_position)
    merger.skipped.require_few(found.count + merger.skipped.count, data.max_skipped_fraction)
    _report(name, found.count, len(chosen), limit)
    return pa.Table.from_pylist([_row(prompt, merger) for prompt in chosen], schema=PROMPTS)


class _Counted(Iterator[Prompt]):
    """Counts the prompts that pass."""

    def __init__(self, prompts: Iterator[Prompt]) -> None:
        self.count = 0
        self._prompts = prompts

    def __next__(self) -> Prompt:
        prompt = next(self._prompts)
        self.count += 1
        return prompt


def _position(prompt: Prompt) -> float:
    return prompt.position


def _row(prompt: Prompt, merger: PromptDeduplicator) -> dict[str, object]:
    row = prompt.row
    return {
        "prompt_id": prompt.identity,
        "split": "heldout",
        "prompt": prompt.text,
        "history": [turn.as_message() for turn in row.history] or None,
        "reference": merger.answers.get(prompt.identity, row.reference),
        "kind": row.kind,
        "novel": row.novel,
        "source": row.source,
    }


def heldout_rows(prompts: Table, limit: int | None) -> pa.Table:
    """Return the held-out prompts that can be graded, smallest hash first, at most `limit`.

    Parts are read in parallel, and only about as many rows as requested are held in memory. There may be millions of
    training rows, and millions in the tenth that is held out.

    Raises:
        CgdError: no held-out prompt has a reference that states an answer.
    """
    chosen, heldout, gradable = PROMPTS.empty_table(), 0, 0
    for found in parallel_map(partial(_heldout, prompts, limit), prompts.parts()):
        chosen = pa.concat_tables([chosen, found.rows])
        if limit is not None and len(chosen) > 2 * limit:
            chosen = _first(chosen, limit)
        heldout, gradable = heldout + found.heldout, gradable + found.gradable
    chosen = _first(chosen, limit)
    _report(HELDOUT, heldout, gradable, limit)
    return chosen


def _report(name: str, found: int, gradable: int, limit: int | None) -> None:
    """Log the questions that are not asked.

    Raises:
        CgdError: none can be graded.
    """
    if not gradable:
        raise CgdError(
            f"evaluation: none of {found} {name} prompts has a reference that states an answer (a "
            'number, a box, "#### ...", "the answer is ..."). Fix: name another reference_column, or set '
            "evaluation.enabled=false"
        )
    if limit is None or gradable < limit:
        if gradable < found:
            log.warning(f"{name}: questions without a gradable reference are skipped", count=found - gradable)
    elif gradable > limit or found > limit:
        log.info(f"{name}: {limit} of {found} questions are asked (evaluation.limit)")


@dataclass(frozen=True)
class _Heldout:
    """Held-out rows of one part of the prompts."""

    rows: pa.Table  # gradable ones, at most the limit
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


def first_question(run: ResolvedRun) -> QuestionSet:
    """Return the first set with its first question alone."""
    first = _question_set(run, run.recipe.evaluation.sets[0])
    return replace(first, rows=first.rows.slice(0, 1), samples=1)
