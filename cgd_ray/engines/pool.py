"""Chains as Ray Data operators: a pool of actors, each with one engine on a thread of its own."""

import asyncio
import gc
import math
import threading
import warnings
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cgd_ray.engines.base import Engine
from cgd_ray.engines.chain import ChainRunner
from cgd_ray.engines.join import caught_up
from cgd_ray.engines.ledger import CLOSE_SECONDS, Admission, as_ours, wait_for_release
from cgd_ray.engines.placement import Wanted, require_room
from cgd_ray.engines.replicas import Pool
from cgd_ray.engines.stage import DONE, WORK, Row, Stage, row_name
from cgd_ray.engines.ward import RevivedEngine
from cgd_ray.errors import CgdError
from cgd_ray.runtime import processes
from cgd_ray.runtime.cluster import Cluster, Demand
from cgd_ray.runtime.packing import holds
from cgd_ray.storage.filesystem import store_errors

# A block is one task and leaves its actor when its slowest row is done: where one row in a hundred takes ten times as
# long as most, a dozen blocks leave three quarters of an engine's places for rows empty. An engine is full with blocks
# of an eighth of its places, if it is given eight times the rows that generate, or with blocks of two and four times
# the rows (tests/unit/engines/test_long_rows.py). Each block takes some 25 ms of a core for two pools, all processes
# together, most of it in Ray's calls of actors: small ones slow down quick engines, and many engines together.
_ROWS, _LEAST_ROWS = 8, 2
_SHARES = 8  # of the rows in flight, one of them a block
_ENGINES = 32
_MOST_BLOCKS = 512  # where another chain of the run needs smaller ones
_QUEUED_BLOCKS = 4  # more that wait at the engine, since the next ones come only as often as Ray Data looks
_SPARE = 7  # times the rows that generate
_SPARE_ROWS = 64

T = TypeVar("T")

# Thousands of rows are thousands of tasks and futures, all alive: looked through after every 700 new objects, as Python
# does by itself, they took 40 % of an engine's process with the scripted engine.
_COLLECT = (100_000, 20, 20)
_REPORT_SECONDS = 1.0
_SPARE_DEATHS = 16  # of actors that start, in a row; the ledger counts them more closely


@dataclass(frozen=True)
class Chain:
    """Stages that share one engine, and what a pool of such engines asks of Ray."""

    role: str
    make_engine: Callable[[], Engine]
    stages: list[Stage]
    replicas: int
    max_in_flight: int
    cpus: float
    gpus: float
    accelerator_type: str | None = None
    min_replicas: int = 1
    flush_rows: int = 256
    flush_seconds: float = 5.0
    rows: int | None = None
    """Rows that lack a stage of this chain, where that is known: of few rows no engine takes more than its share."""

    @property
    def demand(self) -> Demand:
        """Of one engine."""
        return Demand(self.cpus, self.gpus, self.accelerator_type)

    @property
    def spare_rows(self) -> int:
        """Rows that may wait for their commit, or for their block, while others generate."""
        return max(self.admitted_rows - self.max_in_flight, self.max_in_flight)

    @property
    def admitted_rows(self) -> int:
        """Rows that an engine is given at a time: of few, half its share, the rest goes to who is done first."""
        if self.rows is None:
            return self._most_rows
        share = math.ceil(self.rows / (2 * self.replicas)) if self.replicas > 1 else self.rows
        return min(self._most_rows, max(self.max_in_flight, share))

    @property
    def block_rows(self) -> int:
        """Rows that this chain would have in a block of work."""
        rows = max(_ROWS, self.max_in_flight // _SHARES) * (1 + self.replicas // _ENGINES)
        return max(_LEAST_ROWS, min(rows * self.admitted_rows // self._most_rows, self.admitted_rows))

    @property
    def _most_rows(self) -> int:
        return self.max_in_flight + max(_SPARE * self.max_in_flight, _SPARE_ROWS)


class ChainActor:
    """One engine of the pool. Rows are coroutines on the engine's loop; Ray's own loop only waits for them."""

    def __init__(self, chain: Chain, ledger: ActorHandle, schema: pa.Schema) -> None:
        gc.set_threshold(*_COLLECT)
        processes.end_orphans()  # a killed predecessor's engine core would hold this one's cores and memory
        self._chain = chain
        self._ledger = ledger
        self._ending: tuple[type[Exception], ...] = (CgdError, *store_errors())
        self._schema = schema
        self._name = ray.get_runtime_context().get_actor_id()
        self._look = threading.Lock()
        self._parts: dict[str, list[str]] = {}
        self._listed = 0  # deaths that there had been in the run when the parts were listed
        self._node = ray.get_runtime_context().get_node_id()
        place = ray.util.get_current_placement_group()
        self._place = place.id.hex() if place else None
        hopeless = ray.get(ledger.arrive.remote(self._name, chain.role, self._place))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        self._engine = RevivedEngine(chain.make_engine, self._report_suspects)
        self._runner = ChainRunner(
            self._engine,
            chain.stages,
            max_in_flight=chain.max_in_flight,
            flush_rows=chain.flush_rows,
            flush_seconds=chain.flush_seconds,
            spare_rows=chain.spare_rows,
            on_left=self._engine.left,
        )
        self._is_lost = False
        self._start(hopeless)
        self._reporting = self._soon(self._report())

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Run the rows of one block; it leaves when they are all done and on storage."""
        rows = await asyncio.wrap_future(self._soon(self._run(batch.to_pylist())))
        return pa.Table.from_pylist(rows, schema=self._schema)

    def __del__(self) -> None:
        self._reporting.cancel()
        self._soon(self._runner.close()).result(timeout=CLOSE_SECONDS)

    def _start(self, hopeless: str | None) -> None:
        """Load. Where that fails, another engine is started elsewhere, unless this one had been up before."""
        failure = CgdError(hopeless) if hopeless else self._soon(self._engine.start()).exception()
        if failure is None:
            ray.get(self._ledger.up.remote(self._name))
            return
        self._is_lost = ray.get(self._give_up(failure))
        if not self._is_lost:
            raise failure

    def _give_up(self, error: BaseException) -> "ray.ObjectRef[bool]":
        return self._ledger.give_up.remote(self._name, self._chain.role, self._place, self._node, as_ours(error))

    def _soon(self, work: "Coroutine[object, object, T]") -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _run(self, rows: list[Row]) -> list[Row]:
        """The rows with their results, or as they are where the engine cannot go on.

        The driver hears of that and stops the run. Raised here, it would end all engines of the run at once, together
        with what they had not written yet.
        """
        try:
            done = rows if self._is_lost else await self._go_on(rows)
        except self._ending as error:
            if not self._engine.is_broken:
                await self._ledger.fail.remote(as_ours(error))
                return rows
            done = rows
            await self._lose(error)
        if self._is_lost:
            await self._hold(rows)
        return done

    async def _go_on(self, rows: list[Row]) -> list[Row]:
        names = [row_name(row) for row in rows]
        admission: Admission = await self._ledger.begin.remote(self._name, self._chain.role, names)
        for name, strike in admission.strikes.items():
            self._engine.strikes.hold(name, strike)
        if admission.look_again:
            rows = await asyncio.to_thread(self._caught_up, rows, admission.look_again)
        suspects = {name for name, strike in admission.strikes.items() if strike.most is not None}
        rows = await self._runner.run(rows, without_slots=suspects)
        if not self._is_lost:
            await self._end(names)
        return rows

    async def _end(self, names: list[str]) -> None:
        await self._ledger.end.remote(
            self._name, self._chain.role, names, self._runner.take_tallies(), self._runner.ceiling
        )

    async def _lose(self, error: Exception) -> None:
        """The engine died and cannot be started again: write what it had finished, and leave the rest to others."""
        if not self._is_lost:
            self._is_lost = True
            await self._runner.stop()
            await self._give_up(error)

    async def _hold(self, rows: list[Row]) -> None:
        """Keep the rows, which nobody may do here, until the other engines have nothing left to do.

        Ray Data cannot take them back: it ends a run whose actor is gone for good, and gives new rows to an actor that
        has returned its own.
        """
        await asyncio.to_thread(wait_for_release, self._ledger)
        await self._end([row_name(row) for row in rows])

    async def _report(self) -> None:
        """Say what was done, and hear whether to stop."""
        while True:
            stop = await self._ledger.report.remote(self._name, self._runner.take_tallies(), self._runner.ceiling)
            if stop:
                break
            await asyncio.sleep(_REPORT_SECONDS)
        await self._runner.stop()
        await self._ledger.stopped.remote(self._name)

    def _caught_up(self, rows: list[Row], deaths: int) -> list[Row]:
        """What is dead writes no more, so a listing since the last death has all that it wrote."""
        with self._look:
            if self._listed < deaths:
                self._parts = {stage.name: stage.results.parts() for stage in self._chain.stages}
                self._listed = deaths
        return caught_up(self._chain.stages, self._parts, rows)

    async def _report_suspects(self, suspects: set[str] | None) -> None:
        await self._ledger.on_engine.remote(self._name, None if suspects is None else sorted(suspects))


def block_rows(chains: list[Chain]) -> int:
    """Rows of a block of work for these chains. A chain with a few rows left does not make many of another's small."""
    rows = max(chain.rows or 0 for chain in chains) or None
    return min(replace(chain, rows=rows).block_rows for chain in chains)


def stream_rows(chains: list[Chain]) -> int:
    """Rows that may be read and not through the last chain: twice those that the engines are given at a time."""
    return 2 * sum(chain.replicas * chain.admitted_rows for chain in chains)


def set_context(chains: list[Chain]) -> None:
    """How this process runs datasets that are made from now on: each keeps the context that it was made in."""
    context = DataContext.get_current()
    context.issue_detectors_config.detectors.clear()  # one asks for an actor's options, and so takes an engine's place
    # Who cannot start has told the ledger, which ends the run where too few are left.
    context.max_consecutive_actor_init_deaths = _SPARE_DEATHS + 2 * max(chain.replicas for chain in chains)
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # a thread for each block, for a number that nobody asks for


def work_of(table: pa.Table, rows: int) -> ray.data.Dataset:
    """A table of the WORK schema as blocks of so many rows."""
    return ray.data.from_arrow([table.slice(start, rows) for start in range(0, len(table), rows)])


def through_pools(chains: list[Chain], work: ray.data.Dataset, ledger: ActorHandle) -> ray.data.Dataset:
    """Blocks of work (WORK schema) through the chains' pools; what comes out has the DONE schema."""
    # Ray 2.60 has no other way to let a pool's actors start again, or each in a place of its own, and says so at every
    # call.
    warnings.filterwarnings("ignore", message="`ray_remote_args", category=RayDeprecationWarning)
    rows = block_rows(chains)
    for chain in chains:
        tasks = min(_MOST_BLOCKS, math.ceil(chain.admitted_rows / rows))
        work = work.map_batches(
            ChainActor,
            fn_constructor_args=[chain, ledger, DONE if chain is chains[-1] else WORK],
            batch_format="pyarrow",
            # Blocks have so many rows already; Ray Data takes no batch of whole blocks for an operator with GPUs.
            batch_size=rows,
            compute=ActorPoolStrategy(
                size=chain.replicas,
                max_tasks_in_flight_per_actor=tasks + _QUEUED_BLOCKS,
                max_concurrent_calls_per_actor=tasks,
            ),
            # Nodes may go away every night; who keeps dying for a reason of its own is found by the ward.
            max_restarts=-1,
            max_task_retries=-1,
            ray_remote_args_fn=_places(chain, ledger),
            **_resources(chain),
        )
    return work


def _places(chain: Chain, ledger: ActorHandle) -> Callable[[], dict[str, Any]]:
    """Options of an actor of the pool, called for each that is started."""

    def options() -> dict[str, Any]:
        group = ray.get(ledger.take_place.remote(chain.role))
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)}

    return options


def require_chains_fit(chains: list[Chain]) -> None:
    """Refuse chains that could only wait for ever; see `require_room`.

    Raises:
        ConfigError: no node holds an engine, or a cluster that does not grow not all of them.
    """
    require_room([Wanted(f"{chain.role}.engine", chain.demand, chain.replicas) for chain in chains])


def pools_of(chains: list[Chain], cluster: Cluster) -> list[Pool]:
    """What the chains ask of the cluster, and whether it may grow by nodes for them."""
    shapes = [shape for shape, _ in cluster.declared]
    return [
        Pool(
            chain.role,
            chain.demand,
            chain.replicas,
            chain.min_replicas,
            may_come=cluster.grows or any(holds(shape, chain.demand) for shape in shapes),
        )
        for chain in chains
    ]


def _resources(chain: Chain) -> dict[str, Any]:
    resources: dict[str, Any] = {"num_cpus": chain.cpus, "num_gpus": chain.gpus}
    if chain.accelerator_type:
        resources["accelerator_type"] = chain.accelerator_type
    return resources
