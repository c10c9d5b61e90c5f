"""Chains as Ray Data operators: each is a pool of actors, with one engine per actor on its own thread."""

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

# A block is one task and leaves its actor when its slowest row is done. If one row in a hundred takes ten times as long
# as most, a dozen blocks leave three quarters of an engine's row slots empty. Two settings keep an engine full
# (tests/unit/execution/test_long_rows.py): blocks of an eighth of its slots, with eight times the generating rows;
# or blocks of two rows, with four times the generating rows. Each block takes some 25 ms of a core for two pools, over
# all processes, most of it in Ray's actor calls. Small blocks slow down fast engines, and large numbers of engines.
_ROWS, _LEAST_ROWS = 8, 2
_SHARES = 8  # blocks that the rows in flight are split into
_ENGINES = 32
_MOST_BLOCKS = 512  # limit if another chain of the run needs smaller blocks
_QUEUED_BLOCKS = 4  # extra blocks queued at the engine, since Ray Data sends new ones only when it polls
_SPARE = 7  # times the rows that generate
_SPARE_ROWS = 64

_SPARE_DEATHS = 16  # consecutive deaths of starting actors; the coordinator counts them more precisely


@dataclass(frozen=True)
class Chain:
    """Stages that share one engine, and the resources that a pool of such engines requests from Ray."""

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
    """Number of rows that lack a stage of this chain, if known. With few rows, no engine takes more than its share."""

    @property
    def demand(self) -> Demand:
        """Demand of one engine."""
        return Demand(self.cpus, self.gpus, self.accelerator_type)

    @property
    def spare_rows(self) -> int:
        """Number of rows that may wait for their commit, or for their block, while others generate."""
        return max(self.admitted_rows - self.max_in_flight, self.max_in_flight)

    @property
    def admitted_rows(self) -> int:
        """Number of rows that an engine gets at a time: of few rows, half its share. The fastest get the rest."""
        if self.rows is None:
            return self._most_rows
        share = math.ceil(self.rows / (2 * self.replicas)) if self.replicas > 1 else self.rows
        return min(self._most_rows, max(self.max_in_flight, share))

    @property
    def block_rows(self) -> int:
        """Number of rows per block of work that suits this chain."""
        rows = max(_ROWS, self.max_in_flight // _SHARES) * (1 + self.replicas // _ENGINES)
        return max(_LEAST_ROWS, min(rows * self.admitted_rows // self._most_rows, self.admitted_rows))

    @property
    def _most_rows(self) -> int:
        return self.max_in_flight + max(_SPARE * self.max_in_flight, _SPARE_ROWS)


def sized(chain: Chain, rows: int) -> Chain:
    """Scale the chain to `rows` rows: few rows get only as many engines as can each get a quarter of `max_in_flight`.

    Each further engine would cost its loading time, and on an autoscaled cluster a node, for hardly any work.
    """
    enough = math.ceil(rows / math.ceil(chain.max_in_flight / 4))
    replicas = max(1, min(chain.replicas, enough))
    return replace(chain, rows=rows, replicas=replicas, min_replicas=min(chain.min_replicas, replicas))


def block_rows(chains: list[Chain]) -> int:
    """Return the rows per block for these chains. A chain with few rows left does not shrink the blocks of another."""
    rows = max(chain.rows or 0 for chain in chains) or None
    return min(replace(chain, rows=rows).block_rows for chain in chains)


def stream_rows(chains: list[Chain]) -> int:
    """Return the limit of rows read but not through the last chain: twice what the engines get at a time."""
    return 2 * sum(chain.replicas * chain.admitted_rows for chain in chains)


def set_context(chains: list[Chain]) -> None:
    """Configure how this process runs datasets created from now on: each keeps the context of its creation."""
    context = DataContext.get_current()
    context.issue_detectors_config.detectors.clear()  # one evaluates an actor's options, and so takes an engine's place
    # An engine that cannot start reports to the coordinator, which ends the run if too few are left.
    context.max_consecutive_actor_init_deaths = _SPARE_DEATHS + 2 * max(chain.replicas for chain in chains)
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # a thread per block, for a number that is not used


def work_of(table: pa.Table, rows: int) -> ray.data.Dataset:
    """Split a table of the WORK schema into blocks of `rows` rows."""
    # Not from_arrow: it runs a task that needs a whole CPU, and the engines may hold all CPUs.
    return ray.data.from_blocks([table.slice(start, rows) for start in range(0, len(table), rows)])


def through_pools(chains: list[Chain], work: ray.data.Dataset, coordinator: ActorHandle) -> ray.data.Dataset:
    """Run blocks of work (WORK schema) through the chains' pools; the output has the DONE schema."""
    rows = block_rows(chains)
    for chain in chains:
        tasks = min(_MOST_BLOCKS, math.ceil(chain.admitted_rows / rows))
        work = work.map_batches(
            ChainActor,
            fn_constructor_args=[chain, coordinator, DONE if chain is chains[-1] else WORK],
            batch_format="pyarrow",
            # Blocks have this many rows already; for an operator with GPUs, Ray Data rejects whole blocks as batches.
            batch_size=rows,
            compute=ActorPoolStrategy(
                size=chain.replicas,
                max_tasks_in_flight_per_actor=tasks + _QUEUED_BLOCKS,
                max_concurrent_calls_per_actor=tasks,
            ),
            # Nodes may go away every night; the coordinator finds engines that keep dying for a reason of their own.
            **actor_options(_places(chain, coordinator)),
            num_cpus=chain.cpus,
            num_gpus=chain.gpus,
            accelerator_type=chain.accelerator_type,
        )
    return work


def _places(chain: Chain, coordinator: ActorHandle) -> Callable[[], Mapping[str, SchedulingStrategyT]]:
    """Return a function for the options of each actor that starts; actors without demand run on this node."""
    if chain.demand.is_nothing:
        return on_this_node

    def options() -> dict[str, PlacementGroupSchedulingStrategy]:
        group = ray.get(coordinator.take_place.remote(chain.role))
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)}

    return options


def require_chains_fit(chains: list[Chain]) -> None:
    """Reject chains that would wait for room forever; see `require_room`.

    Raises:
        ConfigError: no node can hold an engine, or the cluster cannot hold as many as must run at once.
    """
    require_room([Wanted(f"{chain.role}.engine", chain.demand, chain.replicas, chain.min_replicas) for chain in chains])


def pools_of(chains: list[Chain], cluster: Cluster) -> list[Pool]:
    """Return what the chains request from the cluster, and whether nodes may be added for them."""
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
