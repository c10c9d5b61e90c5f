"""Chains as Ray Data operators: a pool of actors, each with one engine on a thread of its own."""

import asyncio
import math
import threading
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from cgd_ray.engines.base import Engine
from cgd_ray.engines.chain import DONE, WORK, ChainRunner, Row, Stage
from cgd_ray.engines.placement import Demand, require_room
from cgd_ray.errors import CgdError

# Tasks that share an engine's rows in flight. A block of work is one task and leaves the operator when its slowest row
# is done, so there must be many; each costs the driver about a millisecond, so there must not be too many.
_TASKS_IN_FLIGHT = 8


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
    flush_rows: int = 256
    flush_seconds: float = 5.0

    @property
    def block_rows(self) -> int:
        """Rows that this chain would have in a block of work."""
        return max(1, self.max_in_flight // _TASKS_IN_FLIGHT)


class ChainActor:
    """One engine of the pool. Rows are coroutines on the engine's loop; Ray's own loop only waits for them."""

    def __init__(self, chain: Chain, schema: pa.Schema) -> None:
        self._schema = schema
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        self._engine = chain.make_engine()
        asyncio.run_coroutine_threadsafe(self._engine.start(), self._loop).result()
        self._runner = ChainRunner(
            self._engine,
            chain.stages,
            max_in_flight=chain.max_in_flight,
            flush_rows=chain.flush_rows,
            flush_seconds=chain.flush_seconds,
        )

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Run the rows of one block; it leaves when they are all done and on storage."""
        done = asyncio.run_coroutine_threadsafe(self._runner.run(batch.to_pylist()), self._loop)
        return pa.Table.from_pylist(await asyncio.wrap_future(done), schema=self._schema)

    def __del__(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.close(), self._loop).result(timeout=30)


def block_rows(chains: list[Chain]) -> int:
    """Rows of a block of work for these chains."""
    return min(chain.block_rows for chain in chains)


def work_of(table: pa.Table, rows: int) -> ray.data.Dataset:
    """A table of the WORK schema as blocks of so many rows."""
    return ray.data.from_arrow([table.slice(start, rows) for start in range(0, len(table), rows)])


def run_chains(chains: list[Chain], work: ray.data.Dataset) -> Generator[Row]:
    """Stream blocks of work through the chains, all pools at once; yields each row (DONE schema) at the end of its way.

    Closing the iterator stops the pools. Every result is on storage before its row is yielded.

    Raises:
        ConfigError: the engines could only wait for ever for room.
        CgdError: an engine could not start or died; the text is the engine's own, with the tail of its log.
    """
    require_chains_fit(chains)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # Ray 2.60 has no other way to bound the restarts of a pool's actors, and says so at every call.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated", category=RayDeprecationWarning)
    for chain in chains:
        # Twice the rows that generate at a time, see ChainRunner; as many again wait in the actor's queue.
        tasks = 2 * math.ceil(chain.max_in_flight / block_rows(chains))
        work = work.map_batches(
            ChainActor,
            fn_constructor_args=[chain, DONE if chain is chains[-1] else WORK],
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(
                size=chain.replicas, max_tasks_in_flight_per_actor=2 * tasks, max_concurrent_calls_per_actor=tasks
            ),
            max_restarts=3,
            max_task_retries=3,
            **_resources(chain),
        )
    try:
        for batch in work.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()
    except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
        raise _explained(error) from error


def require_chains_fit(chains: list[Chain]) -> None:
    """Refuse chains that could only wait for ever.

    Raises:
        ConfigError: together they ask for more than a cluster has that does not grow.
    """
    if chains:
        cpus = sum(chain.cpus * chain.replicas for chain in chains)
        gpus = sum(chain.gpus * chain.replicas for chain in chains)
        require_room(" and ".join(f"{chain.role}.engine" for chain in chains), Demand(cpus, gpus))


def _resources(chain: Chain) -> dict[str, Any]:
    resources: dict[str, Any] = {"num_cpus": chain.cpus, "num_gpus": chain.gpus}
    if chain.accelerator_type:
        resources["accelerator_type"] = chain.accelerator_type
    return resources


def _explained(error: BaseException) -> CgdError:
    """The innermost CgdError of a chain of Ray's wrappers, else the last line of what Ray says."""
    text = str(error)
    marker = "cgd_ray.errors."
    if marker in text:
        named = text.rsplit(marker, 1)[1]
        return CgdError(named.partition(": ")[2].strip() or named)
    lines = [line for line in text.splitlines() if line.strip()]
    return CgdError(f"generation stopped: {lines[-1] if lines else type(error).__name__}")
