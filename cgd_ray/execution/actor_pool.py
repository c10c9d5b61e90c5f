"""Chains as Ray Data operators: a pool of actors, each with one engine on a thread of its own."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy, SchedulingStrategyT

from cgd_ray.compat.ray_data import actor_options
from cgd_ray.execution.actor import ChainActor
from cgd_ray.execution.coordinator import on_this_node
from cgd_ray.execution.replicas import Pool
from cgd_ray.inference.base import Engine
from cgd_ray.runtime.capacity import Wanted, require_room
from cgd_ray.runtime.cluster import Cluster
from cgd_ray.runtime.demand import Demand
from cgd_ray.runtime.packing import holds
from cgd_ray.stages.stage import DONE, WORK, Stage

# A block is one task and leaves its actor when its slowest row is done: where one row in a hundred takes ten times as
# long as most, a dozen blocks leave three quarters of an engine's places for rows empty. An engine is full with blocks
# of an eighth of its places, if it is given eight times the rows that generate, or with blocks of two and four times
# the rows (tests/unit/execution/test_long_rows.py). Each block takes some 25 ms of a core for two pools, all processes
# together, most of it in Ray's calls of actors: small ones slow down quick engines, and many engines together.
_ROWS, _LEAST_ROWS = 8, 2
_SHARES = 8  # of the rows in flight, one of them a block
_ENGINES = 32
_MOST_BLOCKS = 512  # where another chain of the run needs smaller ones
_QUEUED_BLOCKS = 4  # more that wait at the engine, since the next ones come only as often as Ray Data looks
_SPARE = 7  # times the rows that generate
_SPARE_ROWS = 64

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


def sized(chain: Chain, rows: int) -> Chain:
    """The chain for so many rows: of few, no more engines than can be given a quarter of what they hold at a time.

    Each further one would cost the time of its loading, on an autoscaled cluster a node, and would hardly work.
    """
    enough = math.ceil(rows / math.ceil(chain.max_in_flight / 4))
    replicas = max(1, min(chain.replicas, enough))
    return replace(chain, rows=rows, replicas=replicas, min_replicas=min(chain.min_replicas, replicas))


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
    # Not from_arrow: it runs a task of a whole CPU, and the engines may hold all there are.
    return ray.data.from_blocks([table.slice(start, rows) for start in range(0, len(table), rows)])


def through_pools(chains: list[Chain], work: ray.data.Dataset, coordinator: ActorHandle) -> ray.data.Dataset:
    """Blocks of work (WORK schema) through the chains' pools; what comes out has the DONE schema."""
    rows = block_rows(chains)
    for chain in chains:
        tasks = min(_MOST_BLOCKS, math.ceil(chain.admitted_rows / rows))
        work = work.map_batches(
            ChainActor,
            fn_constructor_args=[chain, coordinator, DONE if chain is chains[-1] else WORK],
            batch_format="pyarrow",
            # Blocks have so many rows already; Ray Data takes no batch of whole blocks for an operator with GPUs.
            batch_size=rows,
            compute=ActorPoolStrategy(
                size=chain.replicas,
                max_tasks_in_flight_per_actor=tasks + _QUEUED_BLOCKS,
                max_concurrent_calls_per_actor=tasks,
            ),
            # Nodes may go away every night; who keeps dying for a reason of its own is found by the supervisor.
            **actor_options(_places(chain, coordinator)),
            num_cpus=chain.cpus,
            num_gpus=chain.gpus,
            accelerator_type=chain.accelerator_type,
        )
    return work


def _places(chain: Chain, coordinator: ActorHandle) -> Callable[[], Mapping[str, SchedulingStrategyT]]:
    """Options of an actor of the pool, called for each that is started; what asks for nothing runs on this node."""
    if chain.demand.is_nothing:
        return on_this_node

    def options() -> dict[str, PlacementGroupSchedulingStrategy]:
        group = ray.get(coordinator.take_place.remote(chain.role))
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)}

    return options


def require_chains_fit(chains: list[Chain]) -> None:
    """Refuse chains that could only wait for ever; see `require_room`.

    Raises:
        ConfigError: no node holds an engine, or the cluster not as many as must run at once.
    """
    require_room([Wanted(f"{chain.role}.engine", chain.demand, chain.replicas, chain.min_replicas) for chain in chains])


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
