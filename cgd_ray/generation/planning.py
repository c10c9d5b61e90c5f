"""Which rows lack which stages: the prompts joined with what the tables hold, by key and by parent digest."""

from dataclasses import dataclass, field, replace

import pyarrow as pa

from cgd_ray.engines.chain import TEXTS, WORK, Row, Stage
from cgd_ray.engines.join import join_results
from cgd_ray.storage.tables import Table


@dataclass
class StageCount:
    """How a stage stands over all rows of a run."""

    ok: int = 0
    truncated: int = 0
    over_long: int = 0
    failed: int = 0
    pending: int = 0
    blocked: int = 0  # an upstream stage has no whole text: there is nothing to work on


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

    A stage whose upstream is still to be made counts as pending; failed rows are to be done again.
    """
    counts = {stage.name: StageCount() for stage in stages}
    rows = []
    for joined in join_results(prompts, samples, stages):
        row = {**joined.texts, "todo": [], "outcomes": []}
        for stage in stages:
            _judge(row, stage, joined.results[stage.name], counts[stage.name])
        if row["todo"]:
            rows.append(row)
    todo = {stage.name: sum(stage.name in row["todo"] for row in rows) for stage in stages}
    return Plan(pa.Table.from_pylist(rows, schema=WORK), counts, todo)


def with_attempts(stages: list[Stage]) -> list[Stage]:
    """The stages, numbered for this invocation: one more than the highest attempt in their tables."""
    return [replace(stage, attempt=_next_attempt(stage.results)) for stage in stages]


def _judge(row: Row, stage: Stage, result: Row | None, count: StageCount) -> None:
    upstream = [name for name in stage.inputs if name in TEXTS]
    if any(row[name] is None and name not in row["todo"] for name in upstream):
        count.blocked += 1
    elif result is None or any(name in row["todo"] for name in upstream):
        count.pending += 1
        row["todo"].append(stage.name)
    elif result["status"] == "failed":
        count.failed += 1
        row["todo"].append(stage.name)
    elif result["status"] == "truncated":
        count.truncated += 1
    elif result["status"] == "over-long":
        count.over_long += 1
    else:
        count.ok += 1


def _next_attempt(table: Table) -> int:
    names = table.parts()  # part-ATTEMPT-WRITER-SEQUENCE.parquet
    return 1 + max((int(name.split("-")[1]) for name in names), default=0)
