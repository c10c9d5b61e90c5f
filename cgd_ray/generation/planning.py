"""Which rows lack which stages: the prompts joined with what the tables hold, by key and by parent digest."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

from cgd_ray.engines.chain import TEXTS, WORK, Row, Stage
from cgd_ray.storage.tables import Table

Key = tuple[str, int, str]  # prompt_id, sample, parent


@dataclass
class StageCount:
    """How a stage stands over all rows of a run."""

    ok: int = 0
    truncated: int = 0
    failed: int = 0
    pending: int = 0
    blocked: int = 0  # an upstream stage was truncated: there is nothing to work on


@dataclass
class Plan:
    """Rows that lack something, and how the stages stand."""

    work: pa.Table
    counts: dict[str, StageCount] = field(default_factory=dict)
    todo: dict[str, int] = field(default_factory=dict)  # rows to do per stage, failed ones included

    @property
    def is_done(self) -> bool:
        """Whether no row lacks anything."""
        return len(self.work) == 0


def plan(prompts: pa.Table, samples: int, stages: list[Stage]) -> Plan:
    """Join prompts (the `train` rows) with the stages' results.

    A result counts only if it was made from exactly the texts that the row has now (its parent digest). A stage whose
    upstream is still to be made counts as pending; failed rows are to be done again.
    """
    results = {stage.name: _by_key(stage.results) for stage in stages}
    counts = {stage.name: StageCount() for stage in stages}
    rows = []
    for row in _rows(prompts, samples):
        for stage in stages:
            _look_up(row, stage, results[stage.name], counts[stage.name])
        if row["todo"]:
            rows.append(row)
    todo = {stage.name: sum(stage.name in row["todo"] for row in rows) for stage in stages}
    return Plan(pa.Table.from_pylist(rows, schema=WORK), counts, todo)


def with_attempts(stages: list[Stage]) -> list[Stage]:
    """The stages, numbered for this invocation: one more than the highest attempt in their tables."""
    return [replace(stage, attempt=_next_attempt(stage.results)) for stage in stages]


def _look_up(row: Row, stage: Stage, results: dict[Key, Row], count: StageCount) -> None:
    upstream = [name for name in stage.inputs if name in TEXTS]
    if any(row[name] is None and name not in row["todo"] for name in upstream):
        count.blocked += 1
        return
    upstream_pending = any(name in row["todo"] for name in upstream)
    result = None if upstream_pending else results.get((row["prompt_id"], row["sample"], stage.parent(row)))
    if result is None:
        count.pending += 1
        row["todo"].append(stage.name)
    elif result["status"] == "failed":
        count.failed += 1
        row["todo"].append(stage.name)
    elif result["status"] == "truncated":
        count.truncated += 1
    else:
        count.ok += 1
        row[stage.name] = result["text"]


def _by_key(table: Table) -> dict[Key, Row]:
    columns = ["prompt_id", "sample", "parent", "status", "text"]
    return {(row["prompt_id"], row["sample"], row["parent"]): row for row in table.read().select(columns).to_pylist()}


def _next_attempt(table: Table) -> int:
    names = table.parts()  # part-ATTEMPT-WRITER-SEQUENCE.parquet
    return 1 + max((int(name.split("-")[1]) for name in names), default=0)


def _rows(prompts: pa.Table, samples: int) -> Iterator[Row]:
    blank = dict.fromkeys(TEXTS)
    for prompt in prompts.select(["prompt_id", "prompt", "reference"]).to_pylist():
        for sample in range(samples):
            yield {**prompt, **blank, "sample": sample, "todo": [], "outcomes": []}
