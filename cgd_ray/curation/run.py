"""Curation phase: turn generated rows into training examples, and record dropped rows with their reasons."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from cgd_ray.config.recipe import Recipe
from cgd_ray.curation.filters import Filter, build_filters, targets
from cgd_ray.errors import CgdError
from cgd_ray.grading.grade import VERSION
from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.stages.rows import Join, JoinedRow, Shard
from cgd_ray.stages.stage import Row
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.schemas import DROPPED, EXAMPLES
from cgd_ray.storage.tables import IdRange, Table

log = structlog.get_logger(__name__)
Key = tuple[str, int]


@dataclass(frozen=True)
class CurationResult:
    """The examples, and the counts of kept and dropped rows."""

    examples: Table
    kept: int
    dropped: dict[str, int]
    reused: bool


def run_curation(recipe: Recipe, joined: Join) -> CurationResult:
    """Make examples from the rows whose stages all succeeded and that pass the filters.

    The examples' fingerprint covers the rows' own texts and the filters. A repaired row is curated again, and rows that
    another run adds to the shared tables change nothing here.

    Raises:
        CgdError: no row is left to train on.
    """
    content = _content(recipe, joined)
    examples, dropped = _tables(joined.prompts.store, content)
    described = examples.description()
    reused = described is not None
    if described is None:
        kept, counts = _curate(recipe, joined, examples, dropped)
        described = {**content, "kept": kept, "dropped": counts}
        examples.describe(described)
    result = CurationResult(examples, described["kept"], described["dropped"], reused)
    log.info("curation", kept=result.kept, dropped=result.dropped or "none", reused=reused)
    if result.kept == 0:
        raise CgdError(
            f"curation: no row is left (dropped: {result.dropped}). "
            "Fix: loosen curation.*, or look at `cgd inspect --dropped`"
        )
    return result


def sample_examples(recipe: Recipe, joined: Join, most: int) -> tuple[list[Row], int]:
    """Return the examples (EXAMPLES schema) that curation would make, and the number of generated rows checked.

    Checks at most `most` rows. Nothing is written.
    """
    filters = build_filters(recipe.curation, targets(recipe.training))
    kept: list[Row] = []
    looked = 0
    for row in _faulted(joined.rows_near(joined.stages[-1].name)):
        if row["fault"] and row["fault"][1] == "missing":
            continue
        looked += 1
        if not row["fault"] and _first_fault(row, filters) is None:
            kept.append(_example(row))
        if looked == most:
            break
    return kept, looked


def dropped_reasons(recipe: Recipe, joined: Join) -> Callable[[Shard], dict[Key, str]] | None:
    """Return a function that maps a shard's dropped rows, by key, to reasons; None before these results are curated."""
    examples, dropped = curated_tables(recipe, joined)
    if examples.description() is None:
        return None
    parts = dropped.parts()

    def reasons(shard: Shard) -> dict[Key, str]:
        ids = IdRange.of_part(shard.prompts)
        rows = dropped.read([name for name in parts if IdRange.of_part(name).meets(ids)]).to_pylist()
        return {(row["prompt_id"], row["sample"]): f"{row['stage']}: {row['reason']}" for row in rows}

    return reasons


def curated_tables(recipe: Recipe, joined: Join) -> tuple[Table, Table]:
    """Return the tables of examples and dropped rows of these results; they may not exist yet."""
    return _tables(joined.prompts.store, _content(recipe, joined))


def _content(recipe: Recipe, joined: Join) -> dict[str, Any]:
    """Return everything that the examples depend on."""
    return {
        "version": VERSION,
        "rows": joined.whole_digest(),
        "filters": recipe.curation.model_dump(),
        "targets": sorted(targets(recipe.training)),
    }


def _tables(store: Store, content: dict[str, Any]) -> tuple[Table, Table]:
    digest = fingerprint(content)
    return Table(store, "examples", digest, EXAMPLES), Table(store, "dropped", digest, DROPPED)


def _curate(recipe: Recipe, joined: Join, examples: Table, dropped: Table) -> tuple[int, dict[str, int]]:
    shards = list(enumerate(joined.shards()))
    kept, counts = 0, Counter[str]()
    for more, reasons in parallel_map(partial(_curate_shard, recipe, joined, examples, dropped), shards):
        kept += more
        counts.update(reasons)
    return kept, dict(counts)


def _curate_shard(
    recipe: Recipe, joined: Join, examples: Table, dropped: Table, numbered: tuple[int, Shard]
) -> tuple[int, Counter[str]]:
    number, shard = numbered
    filters = build_filters(recipe.curation, targets(recipe.training))
    kept: list[Row] = []
    out: list[Row] = []
    for row in _faulted(joined.rows(shard)):
        fault = row.pop("fault") or _first_fault(row, filters)
        if fault is None:
            kept.append(_example(row))
        else:
            out.append(_dropped(row, *fault))
    for table, rows in ((examples, kept), (dropped, out)):
        if rows:
            table.write_part(f"part-{number:06d}", rows)
    return len(kept), Counter(f"{row['stage']}: {row['reason']}" for row in out)


def _dropped(row: Row, stage: str, reason: str) -> Row:
    return {"prompt_id": row["prompt_id"], "sample": row["sample"], "stage": stage, "reason": reason}


def _faulted(rows: Iterable[JoinedRow]) -> Iterator[Row]:
    """Yield every row with its texts and the first stage that has no text for it."""
    for joined in rows:
        row: Row = {**joined.texts, "fault": None}
        answer = joined.results.get("answer")
        if answer and answer["status"] != "ok" and joined.results["critique"] is None:
            row["fault"] = ("answer", answer["status"])  # the critique would have been made from it
        for name, result in joined.results.items():
            _add(row, name, result)
        yield row


def _add(row: Row, name: str, result: dict[str, Any] | None) -> None:
    status = result["status"] if result else "missing"
    if status != "ok" or result is None:
        # A row without a direct answer still serves every method but `distill`.
        if name != "answer":
            row["fault"] = row["fault"] or (name, status)
        return
    if name == "critique":
        row["verdict"] = result["verdict"]
    if name == "refine":
        row["refine_tokens"] = result["completion_tokens"]


def _first_fault(row: Row, filters: list[tuple[str, Filter]]) -> tuple[str, str] | None:
    for stage, judge in filters:
        reason = judge(row)
        if reason is not None:
            return stage, reason
    return None


def _example(row: Row) -> dict[str, Any]:
    names = ("prompt_id", "sample", "prompt", "history", "draft", "critique", "verdict", "answer", "reference")
    return {name: row[name] for name in names} | {"refinement": row["refine"]}
