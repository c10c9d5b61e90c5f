"""Actor of a pool: one engine on its own thread, and the rows that it gets."""

import asyncio
import gc
import platform
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.execution.chain_runner import ChainRunner
from cgd_ray.execution.coordinator import CLOSE_TIMEOUT_S, Admission, as_ours
from cgd_ray.execution.supervisor import RestartingEngine
from cgd_ray.runtime import processes
from cgd_ray.stages.rows import FinishedRows
from cgd_ray.stages.stage import Row, row_name
from cgd_ray.storage import transfers

if TYPE_CHECKING:
    from cgd_ray.execution.actor_pool import Chain

T = TypeVar("T")

# Thousands of rows are thousands of live tasks and futures. Python's default, a collection after every 700 new objects,
# took 40 % of an engine's process with the scripted engine.
_COLLECT = (100_000, 20, 20)
_REPORT_INTERVAL_S = 1.0


class ChainActor:
    """One engine of the pool. Rows are coroutines on the engine's loop; Ray's own loop only waits for them."""

    def __init__(self, chain: "Chain", coordinator: ActorHandle, schema: pa.Schema) -> None:
        gc.set_threshold(*_COLLECT)
        processes.end_orphans()  # a killed predecessor's engine core would hold this actor's cores and memory
        self._chain = chain
        self._coordinator = coordinator
        self._schema = schema
        self._name = ray.get_runtime_context().get_actor_id()
        self._look = threading.Lock()
        self._catch_up = FinishedRows(chain.stages)
        self._listed = 0  # deaths in the run when the parts were last listed
        self._node = ray.get_runtime_context().get_node_id()
        place = ray.util.get_current_placement_group()
        self._place = place.id.hex() if place else None
        hopeless = ray.get(coordinator.arrive.remote(self._name, chain.role, self._place, self._node))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        self._engine = RestartingEngine(chain.make_engine, self._report_suspects)
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
        """Run the rows of one block; return them when all are done and stored."""
        rows = await asyncio.wrap_future(self._soon(self._run(batch.to_pylist())))
        return pa.Table.from_pylist(rows, schema=self._schema)

    def __del__(self) -> None:
        self._reporting.cancel()
        self._soon(self._runner.close()).result(timeout=CLOSE_TIMEOUT_S)

    def _start(self, hopeless: str | None) -> None:
        """Load the engine. If that fails, another one starts elsewhere, unless this one had been up before."""
        failure = CgdError(hopeless) if hopeless else self._soon(self._load()).exception()
        if failure is None:
            ray.get(self._coordinator.up.remote(self._name))
            return
        self._is_lost = ray.get(self._give_up(failure))
        if not self._is_lost:
            raise failure

    async def _load(self) -> None:
        await asyncio.to_thread(self._require_root)
        fetching = asyncio.create_task(self._report_fetching())
        try:
            await self._engine.start()
        finally:
            fetching.cancel()

    def _require_root(self) -> None:
        """Require the tables that the driver described: this node may have joined after all nodes were checked."""
        for stage in self._chain.stages:
            if stage.results.description() is None:
                raise ConfigError(
                    f"run.root {stage.results.store.root} on {platform.node()} is not the driver's. "
                    "Fix: take a directory "
                    "that all nodes share, or s3://bucket/prefix"
                )

    async def _report_fetching(self) -> None:
        """Report each growth of the fetched part of the model: an engine may take minutes to be up."""
        told = transfers.so_far()
        while True:
            await asyncio.sleep(_REPORT_INTERVAL_S)
            if (now := transfers.so_far()) != told:
                await self._coordinator.fetching.remote(self._name, now)
                told = now

    def _give_up(self, error: BaseException) -> "ray.ObjectRef[bool]":
        return self._coordinator.give_up.remote(self._name, self._chain.role, self._place, self._node, as_ours(error))

    def _soon(self, work: "Coroutine[object, object, T]") -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _run(self, rows: list[Row]) -> list[Row]:
        """Return the rows with their results, or unchanged if the engine cannot continue.

        The failure goes to the coordinator, and the driver stops the run. Raising it here would end all engines of the
        run at once and lose their unwritten results.
        """
        try:
            done = rows if self._is_lost else await self._go_on(rows)
        except Exception as error:  # noqa: BLE001  Ray would bury it in advice
            if not self._engine.is_broken:
                await self._coordinator.fail.remote(as_ours(error))
                return rows
            done = rows
            await self._lose(error)
        if self._is_lost:
            await self._hold(rows)
        return done

    async def _go_on(self, rows: list[Row]) -> list[Row]:
        names = [row_name(row) for row in rows]
        admission: Admission = await self._coordinator.begin.remote(self._name, self._chain.role, names)
        for name, suspicion in admission.suspicions.items():
            self._engine.suspicions.hold(name, suspicion)
        if admission.look_again:
            rows = await asyncio.to_thread(self._skip_finished, rows, admission.look_again)
        suspects = {name for name, suspicion in admission.suspicions.items() if suspicion.most is not None}
        rows = await self._runner.run(rows, without_slots=suspects)
        if not self._is_lost:
            await self._end(names)
        return rows

    async def _end(self, names: list[str]) -> None:
        await self._coordinator.end.remote(
            self._name, self._chain.role, names, self._runner.take_metrics(), self._runner.ceiling
        )

    async def _lose(self, error: Exception) -> None:
        """Give up an engine that died and cannot be restarted: write its results, and leave the rest to others."""
        if not self._is_lost:
            self._is_lost = True
            await self._runner.stop()
            await self._give_up(error)

    async def _hold(self, rows: list[Row]) -> None:
        """Keep the rows, which cannot run here, until the other engines have nothing left to do.

        Ray Data cannot take them back. It ends a run whose actor is gone for good, and sends new rows to an actor that
        has returned its own.
        """
        while True:  # not in a thread: the runner needs the threads for writing, and there are many blocks
            if await self._coordinator.may_release.remote():
                break
            await asyncio.sleep(_REPORT_INTERVAL_S)
        await self._end([row_name(row) for row in rows])

    async def _report(self) -> None:
        """Report metrics until the coordinator asks to stop, then stop the runner."""
        while True:
            stop = await self._coordinator.report.remote(self._name, self._runner.take_metrics(), self._runner.ceiling)
            if stop:
                break
            await asyncio.sleep(_REPORT_INTERVAL_S)
        await self._runner.stop()
        await self._coordinator.stopped.remote(self._name)

    def _skip_finished(self, rows: list[Row], deaths: int) -> list[Row]:
        """Skip finished rows. A dead engine writes no more, so a listing made after its death has all its results."""
        with self._look:
            if self._listed < deaths:
                self._catch_up.look()
                self._listed = deaths
            return self._catch_up.rows(rows)

    async def _report_suspects(self, suspects: set[str] | None) -> None:
        await self._coordinator.on_engine.remote(self._name, None if suspects is None else sorted(suspects))
