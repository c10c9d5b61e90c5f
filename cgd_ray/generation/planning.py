"""Find which rows lack which stages: join the prompts with the tables, by key and by parent digest."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import pyarrow as pa

from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.stages.rows import Join, JoinedRow, Shard, rows_digest
from cgd_ray.stages.stage import TEXTS, WORK, Row, Stage
from cgd_ray.storage.tables import next_attempt

_WORK_ROWS = 256


@dataclass
class StageCount:
    """Counts of a stage's states over all rows of a run."""

    ok: int = 0
    truncated: int = 0
    over_long: int = 0
    quarantined: int = 0  # rows that crash the engine
    failed: int = 0
    pending: int = 0
    blocked: int = 0  # an upstream stage has no complete text, so there is no input


@dataclass
class Plan:
    """State of a run's stages, and the shards with rows that lack a stage."""

    counts: dict[str, StageCount] = field(default_factory=dict)
    todo: dict[str, int] = field(default_factory=dict)  # rows to do per stage, failed ones included
    again: dict[str, int] = field(default_factory=dict)  # those of them that failed
    first: dict[str, int] = field(default_factory=dict)  # rows whose first stage to do is this one
    shards: list[Shard] = field(default_factory=list)
    untried: int = 0  # rows whose first stage to do was never tried; that of the others failed
    digest: str = ""  # digest of all rows, see `Join.digest`

    @property
    def is_done(self) -> bool:
        """Whether no row lacks a stage."""
        return not self.shards

    @property
    def rows(self) -> int:
        """Number of rows of the run."""
        return max((sum(vars(count).values()) for count in self.counts.values()), default=0)


def plan(join: Join) -> Plan:
    """Count the rows' states; on a cluster, shards are checked in parallel, from digests alone.

    A stage whose upstream is still to be made counts as pending; failed rows are to be done again.
    """
    whole, digests = _empty(join.stages), list[bytes]()
    for part in parallel_map(partial(_plan_shard, join), join.shards()):
        _add(whole, part)
        digests.append(part.digest.encode())
    return replace(whole, digest=rows_digest(digests))


def work(join: Join, shard: Shard, stages: Set[str]) -> Iterator[pa.Table]:
    """Yield a shard's rows (WORK schema) that lack one of these stages, in blocks of any size."""
    rows = (_work_row(join.stages, joined) for joined in join.rows(shard))
    wanted = (row for row in rows if stages & set(row["todo"]))
    while block := list(islice(wanted, _WORK_ROWS)):
        yield pa.Table.from_pylist(block, schema=WORK)


def todo(stages: list[Stage], joined: JoinedRow) -> list[str]:
    """Return the stages that the row lacks and that can be made, upstream first."""
    lacking: list[str] = []
    for stage in stages:
        _judge(joined, stage, lacking, StageCount())
    return lacking


def with_attempts(stages: list[Stage], join: Join | None = None) -> list[Stage]:
    """Number the stages for this invocation: one more than the highest attempt in their tables.

    If `join` has the parts and the shard borders, no table is listed.
    """
    parts = (join and join.parts) or {stage.name: stage.results.parts() for stage in stages}
    borders = join.borders if join else ()
    return [replace(stage, attempt=next_attempt(parts[stage.name]), borders=borders) for stage in stages]


def _plan_shard(join: Join, shard: Shard) -> Plan:
    found, marks = _empty(join.stages), list[bytes]()
    for joined in join.rows(shard, texts=False):
        marks.append(joined.mark)
        todo: list[str] = []
        for stage in join.stages:
            _judge(joined, stage, todo, found.counts[stage.name])
        for name in todo:
            found.todo[name] += 1
            found.again[name] += joined.results[name] is not None
        if todo:
            found.first[todo[0]] += 1
            found.untried += joined.results[todo[0]] is None
    if any(found.todo.values()):
        found.shards.append(shard)
    return replace(found, digest=rows_digest(marks))


def _empty(stages: list[Stage]) -> Plan:
    names = [stage.name for stage in stages]
    todo, again, first = (dict.fromkeys(names, 0) for _ in range(3))
    return Plan({name: StageCount() for name in names}, todo, again, first)


def _add(whole: Plan, part: Plan) -> None:
    for name, count in part.counts.items():
        for state, rows in vars(count).items():
            setattr(whole.counts[name], state, getattr(whole.counts[name], state) + rows)
        for numbers, more in ((whole.todo, part.todo), (whole.again, part.again), (whole.first, part.first)):
            numbers[name] += more[name]
    whole.shards += part.shards
    whole.untried += part.untried


def _work_row(stages: list[Stage], joined: JoinedRow) -> Row:
    return {**joined.texts, "todo": todo(stages, joined)}


def _judge(joined: JoinedRow, stage: Stage, todo: list[str], count: StageCount) -> None:
    result = joined.results[stage.name]
    upstream = [name for name in stage.inputs if name in TEXTS]
    if any(name not in joined.digests and name not in todo for name in upstream):
        count.blocked += 1
    elif result is None or any(name in todo for name in upstream):
        count.pending += 1
        todo.append(stage.name)
    else:
        state = result["status"].replace("-", "_")
        setattr(count, state, getattr(count, state) + 1)
        if result["status"] in stage.again:
            todo.append(stage.name)
