"""Estimate the rest of a run by generating a few of its rows: tokens, hours, GPU-hours and money per stage.

The rows of a probe belong to the run: they are in its tables, and the run does not generate them again.
"""

import itertools
import math
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from cgd_ray.config.recipe import Recipe
from cgd_ray.estimation.interval import NOTHING, Interval, sum_of
from cgd_ray.generation.planning import Plan, plan, todo
from cgd_ray.generation.run import GenerationResult, engine_of, run_generation
from cgd_ray.runtime.cluster import read_cluster
from cgd_ray.stages.definitions import role_of
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.stages.rows import Join, Shard
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.schemas import PROMPTS
from cgd_ray.storage.tables import Table


@dataclass(frozen=True)
class StageEstimate:
    """Estimated cost of one stage for the rows that lack it after the probe."""

    rows: float
    """Expected number, from the share of the probe's rows that this stage generated."""
    prompt_tokens: Interval
    completion_tokens: Interval
    hours: Interval
    """Hours that its pool works for this stage."""
    gpu_hours: Interval
    money: Interval | None
    """At the prices of an HTTP teacher or of a GPU-hour; None without a price."""


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of the rest of a run."""

    probed: int
    """Rows of the probe."""
    stages: dict[str, StageEstimate]
    overlap: bool
    """Whether student and teacher work at the same time, so that the slower one sets the duration."""
    unmeasured: list[str]
    """Stages with rows to do that the probe did not measure."""
    starved: bool
    """Whether the probe was too small to fill the engines: the run will be faster than estimated."""

    @property
    def hours(self) -> Interval:
        """Hours from the first row to the last, without loading."""
        pools: dict[str, Interval] = {}
        for name, stage in self.stages.items():
            pools[role_of(name)] = pools.get(role_of(name), NOTHING).plus(stage.hours)
        if self.overlap:
            return max(pools.values(), key=lambda hours: hours.value, default=NOTHING)
        return sum_of(pools.values())


def probe(run: ResolvedRun, rows: int, gpu_hour_price: float | None) -> Estimate | None:
    """Generate about `rows` rows of a run and estimate the cost of the others; None if nothing is left to do.

    Raises:
        CgdError: as `run_generation`.
    """
    join = run.join()
    sample = _sample(join, plan(join), rows)
    if sample is None:
        return None
    result = run_generation(run, sample)
    measured = _Probe(run.recipe, result, run.join(sample), gpu_hour_price)
    left = {name: rows for name, rows in plan(join).todo.items() if rows}
    stages = {name: measured.estimate(name, rows) for name, rows in left.items() if name in measured.stages}
    unmeasured = [name for name in left if name not in stages]
    return Estimate(measured.rows, stages, result.execution == "streaming", unmeasured, measured.is_starved)


class _Probe:
    """Measurements of the probe by stage."""

    def __init__(self, recipe: Recipe, result: GenerationResult, join: Join, gpu_hour_price: float | None) -> None:
        self._recipe = recipe
        self._metrics = {stage: counted for stage, counted in result.metrics.items() if counted["rows"]}
        self._price = gpu_hour_price
        made = list(join)
        self.rows = len(made)
        found = {stage.name: [row.results[stage.name] for row in made] for stage in join.stages}
        self._counted = {
            stage: [row for row in rows if row and row["completion_tokens"] is not None]
            for stage, rows in found.items()
        }

    @property
    def stages(self) -> set[str]:
        """Stages with measurements."""
        return {stage for stage in self._metrics if self._counted[stage]}

    @property
    def is_starved(self) -> bool:
        """Whether a pool of engines has room for more than half of the probe's rows at a time."""
        return any(self.rows < 2 * self._width(role_of(stage)) for stage in self._metrics)

    def estimate(self, stage: str, lacking: int) -> StageEstimate:
        """Estimate the cost of the stage for `lacking` more rows."""
        made = self._counted[stage]
        rows = lacking * len(made) / self.rows
        prompt = Interval.of([result["prompt_tokens"] for result in made], rows)
        completion = Interval.of([result["completion_tokens"] for result in made], rows)
        hours = _like(completion, rows * self._seconds_per_row(stage) / 3600)
        gpu_hours = hours.times(self._gpus(role_of(stage)))
        return StageEstimate(
            rows, prompt, completion, hours, gpu_hours, self._money(stage, prompt, completion, gpu_hours)
        )

    def _seconds_per_row(self, stage: str) -> float:
        """Return the pool's seconds per row; its time is divided among its stages by their busy seconds."""
        pool = [counted for name, counted in self._metrics.items() if role_of(name) == role_of(stage)]
        seconds = max(t["started"] + t["seconds"] for t in pool) - min(t["started"] for t in pool)
        share = self._metrics[stage]["busy_seconds"] / max(1e-9, sum(t["busy_seconds"] for t in pool))
        counted = self._metrics[stage]
        # Rows without a text took no time, and the estimate does not count them.
        answered = counted["rows"] - counted["failed"] - counted["over_long"] - counted["quarantined"]
        return seconds * share / max(1, answered)

    def _gpus(self, role: str) -> float:
        options, _ = engine_of(self._recipe, role)
        demand = options.demand(read_cluster(), sharing=1, key=f"{role}.engine")
        return options.pool_size().replicas * demand.gpus

    def _width(self, role: str) -> int:
        options, _ = engine_of(self._recipe, role)
        pool = options.pool_size()
        return pool.replicas * pool.in_flight

    def _money(self, stage: str, prompt: Interval, completion: Interval, gpu_hours: Interval) -> Interval | None:
        options, _ = engine_of(self._recipe, role_of(stage))
        if options.is_remote:
            per_prompt, per_completion = options.price(1, 0), options.price(0, 1)
            return (
                prompt.times(per_prompt).plus(completion.times(per_completion)) if per_prompt + per_completion else None
            )
        return None if self._price is None else gpu_hours.times(self._price)


def _like(interval: Interval, value: float) -> Interval:
    """Return an interval around a value with the relative width of another interval."""
    return interval.times(value / interval.value) if interval.value else Interval(value, value, value)


def _sample(join: Join, current: Plan, rows: int) -> Table | None:
    """Write a table of sampled prompts that lack the first incomplete stage; None if there are none.

    Ids are hashes, so the first ones are a random sample. Rows that were never tried come first: failed rows may not be
    representative.
    """
    first = next((stage.name for stage in join.stages if current.todo[stage.name]), None)
    missing, ids, chosen = math.ceil(rows / join.samples), set[str](), dict[str, list[str]]()
    for tried, shard in itertools.product((False, True), current.shards if first else []):
        if found := list(islice(_lacking(join, shard, str(first), ids, tried=tried), missing)):
            chosen.setdefault(shard.prompts, []).extend(found)
            ids.update(found)
            missing -= len(found)
        if not missing:
            break
    if not chosen:
        return None
    content = {"probe": join.prompts.fingerprint, "prompts": sorted(ids)}
    table = Table(join.prompts.store, "prompts", fingerprint(content), PROMPTS)
    # One part per part of the prompts: a part that spans all ids would be joined with every stage's whole table.
    for number, part in enumerate(sorted(chosen)):
        prompts = join.prompts.read([part])
        table.write_part(f"part-{number:06d}", prompts.filter(pc.is_in(prompts["prompt_id"], pa.array(chosen[part]))))
    return table


def _lacking(join: Join, shard: Shard, stage: str, chosen: Set[str], *, tried: bool) -> Iterator[str]:
    """Yield ids of unchosen prompts whose first missing stage is this one; `tried` selects those tried before."""
    last = None
    for row in join.rows(shard, texts=False):
        identity: str = row.texts["prompt_id"]
        wanted = todo(join.stages, row)[:1] == [stage] and (row.results[stage] is not None) == tried
        if wanted and identity != last and identity not in chosen:
            yield identity
            last = identity
