"""Generation phase: plan what is missing, start only the engines that have work, and stream the rows through."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
import structlog
from ray.actor import ActorHandle

from cgd_ray.compat.ray_data import WITHOUT_CORES, repartition_without_cores
from cgd_ray.config.engine import StudentEngine, TeacherEngine
from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import RERUN, CgdError
from cgd_ray.execution.actor_pool import Chain, block_rows, require_chains_fit, sized
from cgd_ray.execution.chains import build_chain
from cgd_ray.execution.coordinator import report_fatal, wait_for_room
from cgd_ray.execution.driver import run_chains
from cgd_ray.execution.progress import Progress
from cgd_ray.generation.engine_failures import clear_failures, recording_failures
from cgd_ray.generation.explain import set_apart
from cgd_ray.generation.guard import Guard, paid
from cgd_ray.generation.planning import Plan, plan, with_attempts, work
from cgd_ray.inference.options import ModelRef
from cgd_ray.runtime.cluster import read_cluster
from cgd_ray.runtime.demand import Demand
from cgd_ray.runtime.packing import pack
from cgd_ray.stages.definitions import Stages, role_of
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.stages.rows import Join, Shard
from cgd_ray.stages.stage import Stage
from cgd_ray.storage.compaction import merging
from cgd_ray.storage.filesystem import Store, store_errors
from cgd_ray.storage.lease import Lease, hold_lease
from cgd_ray.storage.runs import Run
from cgd_ray.storage.tables import Table

log = structlog.get_logger(__name__)
_READERS = 2  # at a time: each reads tens of thousands of rows a second, and its process takes seconds to start


@dataclass(frozen=True)
class GenerationResult:
    """What generation did in this invocation, and the state of its tables."""

    stages: Stages
    join: Join
    """The run's rows with their generated texts; parts are listed and rows read only once."""
    counts: dict[str, dict[str, int]]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    execution: str = "none"

    @property
    def reused(self) -> bool:
        """Whether nothing had to be generated."""
        return not self.metrics


def run_generation(run: ResolvedRun, prompts: Table | None = None, *, may_generate: bool = True) -> GenerationResult:
    """Make the draft, critique and refinement (and direct answer, if configured) of every training prompt.

    Args:
        run: run of the recipe.
        prompts: table in place of the run's own, for instance a sample of it.
        may_generate: if false, existing results are only listed and counted.

    Raises:
        StoppedError: a ceiling or too many failures stopped it; rerun the same command to resume.
        CgdError: an engine could not start or died.
    """
    stages, join = run.stages, run.join(prompts)
    join = join.compacted() if may_generate else join.listed()
    current = plan(join)
    if may_generate and current.is_done:
        log.info("generation: nothing to do, no engine is loaded", rows=current.rows)
    if current.is_done or not may_generate:
        return GenerationResult(stages, _read(join, current), _counts(current))
    with _sole_maker(run.store, stages, current) as leases:
        now = join.listed({stage.name for stage in stages.all})
        if now.parts != join.parts:  # another command made some results meanwhile
            current = plan(now)
        return _generate(run, now, current, leases)


def _read(join: Join, current: Plan) -> Join:
    """Return the join with the digest that planning computed from its rows."""
    return replace(join, digest=current.digest)


def _generate(run: ResolvedRun, join: Join, current: Plan, leases: list[Lease]) -> GenerationResult:
    recipe, stages = run.recipe, run.stages
    for stage in stages.all:
        if reason := set_apart(stage.results, stage.description):
            log.info(f"{stage.name}: {reason}")
        stage.results.describe(stage.description)
    clear_failures(run.folder)
    execution = _execution(recipe, current, stages)
    parts = _parts(execution, stages)
    spent = paid(recipe, stages.teacher)
    for part in parts:  # before any costs arise
        require_chains_fit(_chains(recipe, _needed(current, stages, part), spent))
    guard = Guard(recipe, Progress(current.todo), leases, spent, current)
    with guard.progress, merging(_lacking(stages, current), join.borders):
        while parts:
            part = parts.pop(0)
            # A row whose draft failed would need nothing from the teacher's engine.
            if not (left := sum(current.first[stage.name] for stage in part)):
                continue
            lost = _run(recipe, guard, join, current, _needed(current, stages, part))
            join = join.listed({stage.name for stage in part})
            current = plan(join)  # with this part's results
            if lost and sum(current.first[stage.name] for stage in part) < left:
                log.warning("engines were lost; doing their rows again", engines=lost)
                # The remaining nodes may not hold both models at once.
                again = _parts(_execution(recipe, current, stages), stages) if part == stages.all else [part]
                parts = [*again, *parts]
    guard.require_some(current)
    if current.untried:
        raise CgdError(f"{current.untried} rows were skipped, which is a bug of cgd-ray. Fix: {RERUN}")
    return GenerationResult(stages, _read(join, current), _counts(current), guard.progress.summary(), execution)


def _lacking(stages: Stages, current: Plan) -> list[Table]:
    return [stage.results for stage in stages.all if current.todo[stage.name]]


@contextlib.contextmanager
def _sole_maker(store: Store, stages: Stages, current: Plan) -> Iterator[list[Lease]]:
    """Lease the tables that lack rows, in one order for all commands; another command may have made rows meanwhile."""
    with contextlib.ExitStack() as stack:
        folders = sorted(table.folder for table in _lacking(stages, current))
        yield [stack.enter_context(hold_lease(store, folder, wait=True)) for folder in folders]


def _counts(current: Plan) -> dict[str, dict[str, int]]:
    return {name: dict(vars(count)) for name, count in current.counts.items()}


def _execution(recipe: Recipe, current: Plan, stages: Stages) -> str:
    """Return how the two engines share the cluster; one engine alone is `staged`."""
    needed = _needed(current, stages)
    if len({role_of(stage.name) for stage in needed}) < 2:
        return "staged"
    wanted = recipe.generation.execution
    if wanted != "auto":
        return wanted
    return "streaming" if _fit_at_once(recipe) else "staged"


def _fit_at_once(recipe: Recipe) -> bool:
    """Whether all replicas of both engines can run at once, each on one node, without starving each other.

    On CPU, two concurrent engines halve each other's cores and gain nothing from overlap, unless both set their number
    of cores.
    """
    cluster, demands = read_cluster(), list[Demand]()
    for role in ("student", "teacher"):
        options, _ = engine_of(recipe, role)
        demand = options.demand(cluster, sharing=1, key=f"{role}.engine")
        demands += [demand] * options.pool_size().replicas
    return pack(demands, cluster) is not None


def _parts(execution: str, stages: Stages) -> list[list[Stage]]:
    """Return the groups of stages that run at the same time."""
    return [stages.all] if execution == "streaming" else [stages.student, stages.teacher]


def _needed(current: Plan, stages: Stages, among: list[Stage] | None = None) -> list[Stage]:
    """Return the stages with rows to do: an operator without work would still load its engine."""
    return [stage for stage in (among or stages.all) if current.todo[stage.name]]


def _work(
    join: Join, shards: list[Shard], needed: list[Stage], block_rows: int, coordinator: ActorHandle
) -> ray.data.Dataset:
    """Read the rows that lack one of these stages, on any spare core, while the engines already work.

    Each read of a shard gives the same rows in the same order, whatever engines have made since. If a reader dies, Ray
    runs it again and skips as many of its blocks as Ray already has.
    """
    numbers = ray.data.from_blocks([pa.table({"number": [number]}) for number in range(len(shards))])
    blocks = numbers.map_batches(
        _Blocks(join, shards, frozenset(stage.name for stage in needed), coordinator),
        batch_size=1,
        batch_format="numpy",
        concurrency=_READERS,
        **WITHOUT_CORES,
    )
    return repartition_without_cores(blocks, block_rows, _READERS)


@dataclass(frozen=True)
class _Blocks:
    join: Join
    shards: list[Shard]
    stages: frozenset[str]
    coordinator: ActorHandle

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        ending: tuple[type[Exception], ...] = (CgdError, *store_errors())
        for number in batch["number"]:
            try:
                blocks = list(work(self.join, self.shards[number], self.stages))
            except ending as error:
                report_fatal(self.coordinator, error)
                raise
            wait_for_room(self.coordinator, int(number), sum(map(len, blocks)))
            yield from blocks


def _run(recipe: Recipe, guard: Guard, join: Join, current: Plan, needed: list[Stage]) -> int:
    """Run the rows through the engines of these stages; return the number of engines lost."""
    making = with_attempts(needed, join)
    chains = [
        sized(chain, max(current.todo[stage.name] for stage in chain.stages))
        for chain in _chains(recipe, making, guard.paid_before)
    ]
    for chain in chains:
        names = ", ".join(stage.name for stage in chain.stages)
        log.info(f"loading the {chain.role}'s engine", stages=names, replicas=chain.replicas, cpus=chain.cpus)
    guard.progress.next_engines()
    rows = partial(_work, join.before(making), current.shards, needed, block_rows(chains))
    watch = recording_failures(Run(join.prompts.store, recipe.run.name), guard.check)
    return run_chains(chains, rows, watch, recipe.generation.stall_timeout_s)


def _chains(recipe: Recipe, needed: list[Stage], spent: float) -> list[Chain]:
    """Return the chains of these stages, one per engine."""
    by_role: dict[str, list[Stage]] = {}
    for stage in needed:
        by_role.setdefault(role_of(stage.name), []).append(stage)
    cluster = read_cluster()
    engines = {role: engine_of(recipe, role) for role in by_role}
    sharing = sum(not options.is_remote for options, _ in engines.values())
    chains = []
    for role, stages in by_role.items():
        options, model = engines[role]
        demand = options.demand(cluster, sharing=sharing, key=f"{role}.engine")
        chains.append(build_chain(role, options, model, stages, demand=demand, storage=recipe.storage, spent=spent))
    return chains


def engine_of(recipe: Recipe, role: str) -> tuple[StudentEngine | TeacherEngine, ModelRef]:
    """Return the options of a role's engine, and its model."""
    section = recipe.student if role == "student" else recipe.teacher
    return section.engine, section.ref
