"""Coordinator of a run: records which engine works on which rows, what was done, and which rows are suspects.

One Ray actor beside the driver. It outlives every engine, so it still has the rows of an engine that is gone.
"""

import contextlib
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ray
import ray.exceptions
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cgd_ray.errors import RERUN, CgdError
from cgd_ray.execution.backpressure import ReadAheadLimit
from cgd_ray.execution.bloom_filter import BloomFilter
from cgd_ray.execution.metrics import Metrics, add_metrics
from cgd_ray.execution.quarantine import SuspectTracker, Suspicion
from cgd_ray.execution.replicas import Pool, Replicas
from cgd_ray.execution.supervisor import MOST_DEATHS
from cgd_ray.runtime.cluster import Cluster
from cgd_ray.runtime.logs import describe_own_log, show_traceback
from cgd_ray.storage.filesystem import store_errors
from cgd_ray.storage.transfers import Transfer

CLOSE_TIMEOUT_S = 30.0  # for the driver to detect a failure and end the run
_ROOM_POLL_INTERVAL_S = 0.2
_STRANDED_AFTER_S = 60.0  # without progress anywhere, after which a lost node's rows go to other engines
_HOLD_AFTER_S = 10.0  # without progress anywhere, after which only rows held by lost engines are left
_START_DEATHS = 2  # consecutive deaths of a loading process; the next try is on another node


@dataclass(frozen=True)
class Admission:
    """Information that an engine needs before it begins a block."""

    suspicions: dict[str, Suspicion]
    """Suspicions against its rows."""
    look_again: int
    """0: the block is up to date. Otherwise it was begun before, so its rows may be stored. A listing made at a smaller
    number is then too old."""


@dataclass(frozen=True)
class Snapshot:
    """State of a run."""

    metrics: Metrics
    engines: int
    """Number of engines that have loaded."""
    idle_seconds: float
    """Seconds since an engine loaded, more of a model arrived, or a stage of a row was finished."""
    deaths: int
    """Number of deaths of engine processes."""
    ceiling: str | None
    """Why an engine stopped at its spend ceiling."""
    broken: CgdError | None
    """Error after which the run cannot continue."""
    troubles: list[str] = field(default_factory=list)
    """Engines that could not start or restart, one line each."""
    lost: int = 0
    """Number of these engines that had been up; the rows that they held stay undone."""
    stranded: int = 0
    """Number of engines whose nodes are gone, while the other engines of their role have nothing to do."""
    fetching: Transfer | None = None
    """Fetched and total size of the models, over the engines that still fetch."""


@dataclass
class _Engine:
    role: str | None = None
    node: str | None = None
    rows: set[str] = field(default_factory=set)  # rows of blocks that it has begun
    suspects: set[str] | None = None  # the only rows on it, while there are suspects
    is_up: bool = False
    is_stopped: bool = False
    deaths: int = 0  # deaths of its process with nothing finished in between
    start_deaths: int = 0  # consecutive deaths of its process before it had loaded
    was_up: bool = False
    is_lost: bool = False
    fetched: Transfer | None = None


class _Coordinator:
    def __init__(self, last_role: str, room: int, pools: Sequence[Pool] = ()) -> None:
        self._engines: dict[str, _Engine] = {}
        self._last_role = last_role
        self._pace = ReadAheadLimit(room)
        self._replicas = Replicas(pools)
        self._troubles: list[str] = []
        self._suspicions = SuspectTracker()
        self._metrics: Metrics = {}
        self._ceiling: str | None = None
        self._broken: CgdError | None = None
        self._stopping = False
        # All blocks ever begun. A block whose rows are stored stays included: Ray may lose what the engine returned,
        # and begin the block again.
        self._begun = BloomFilter()
        self._deaths = 1  # deaths of engine processes, plus 1: 0 would mean that no listing is needed
        self._progress = time.monotonic()

    def may_read(self, shard: int, rows: int) -> bool:
        """See `ReadAheadLimit.may_read`."""
        return self._pace.may_read(shard, rows)

    def request_places(self, cluster: Cluster) -> None:
        """See `Replicas.request`."""
        self._replicas.request(cluster)

    def take_place(self, role: str) -> PlacementGroup:
        """See `Replicas.take`."""
        return self._replicas.take(role)

    def is_vacated(self) -> bool:
        """See `Replicas.is_vacated`."""
        return self._replicas.is_vacated()

    def remove_places(self) -> None:
        """See `Replicas.remove_places`."""
        self._replicas.remove_places()

    def arrive(
        self, engine: str, role: str | None = None, place: str | None = None, node: str | None = None
    ) -> str | None:
        """Register an engine's process; if it was registered before, it has died in between.

        Returns:
            Why it should not try to load, if it died repeatedly while loading.
        """
        gone = self._engines.get(engine)
        self._engines[engine] = now = _Engine(role, node, deaths=gone.deaths + 1 if gone else 0)
        if role:
            self._replicas.arrive(engine, role, place)
        if gone is None:
            self._progress = time.monotonic()
            return None
        now.was_up = gone.was_up
        died_alone = gone.node is None or gone.node in _living_nodes()  # a node that went away is no model fault
        now.start_deaths = 0 if gone.is_up else gone.start_deaths + died_alone
        self._deaths += 1
        self._suspicions.death(gone.rows if gone.suspects is None else gone.suspects)
        if now.deaths > MOST_DEATHS:
            self.fail(
                CgdError(
                    f"an engine's process died {MOST_DEATHS + 1} times in a row and finished nothing in between. "
                    f"Fix: read the engines' logs; {RERUN}"
                )
            )
        if now.start_deaths < _START_DEATHS:
            return None
        return f"an engine's process died {now.start_deaths} times in a row while it loaded: look at the engines' logs"

    def up(self, engine: str) -> None:
        """Record that an engine has loaded."""
        self._engines[engine].is_up = self._engines[engine].was_up = True
        self._replicas.up(engine)
        if not self._engines[engine].deaths:  # repeated loading is no progress
            self._progress = time.monotonic()

    def fetching(self, engine: str, transfer: Transfer) -> None:
        """Record how much of its model is on the engine's node."""
        self._engines[engine].fetched = transfer
        self._progress = time.monotonic()

    def give_up(self, engine: str, role: str, place: str | None, node: str, error: CgdError) -> bool:
        """Record that an engine cannot start or restart on its node; return whether it had been up."""
        state = self._engines[engine]
        state.is_up, state.is_stopped, state.is_lost = False, True, state.was_up
        self._replicas.give_up(engine, role, None if state.was_up else place, node, error)
        what = "is lost" if state.was_up else "could not start, and its place is tried on another node"
        self._troubles.append(f"an engine of the {role} on node {node} {what}: {error}")
        return state.was_up

    def may_release(self) -> bool:
        """Whether lost engines may release the rows that they hold: the other engines have nothing left to do."""
        if self._stopping or time.monotonic() - self._progress <= _HOLD_AFTER_S:  # each held block polls once a second
            return self._stopping
        living = _living_nodes()
        others = [
            engine
            for engine in self._engines.values()
            if not engine.is_lost and not engine.is_stopped and (engine.node is None or engine.node in living)
        ]
        return all(engine.is_up and not engine.rows for engine in others)

    def begin(self, engine: str, role: str, rows: list[str]) -> Admission:
        """Record that an engine is about to work on a block of these rows."""
        self._engines[engine].rows.update(rows)
        held = {row: self._suspicions.of(row) for row in rows}
        suspicions = {row: suspicion for row, suspicion in held.items() if suspicion.deaths}
        if self._begun.add((role, *rows)):
            return Admission(suspicions, 0)
        # A lost node's engine may come back long after another engine has begun its blocks.
        return Admission(suspicions, self._deaths + sum(not node["Alive"] for node in ray.nodes()))

    def on_engine(self, engine: str, suspects: list[str] | None) -> None:
        """Record that only these rows are on the engine; None means that no suspects are left."""
        self._engines[engine].suspects = None if suspects is None else set(suspects)

    def end(self, engine: str, role: str, rows: list[str], metrics: Metrics, ceiling: str | None) -> None:
        """Record that an engine is done with these rows and their results are stored."""
        if role == self._last_role:
            self._pace.leave(len(rows))
        self._engines[engine].rows.difference_update(rows)
        for row in rows:
            self._suspicions.clear(row)
        self.report(engine, metrics, ceiling)

    def report(self, engine: str, metrics: Metrics, ceiling: str | None) -> bool:
        """Add an engine's metrics since its last report; return whether it should stop."""
        add_metrics(self._metrics, metrics)
        self._ceiling = ceiling or self._ceiling
        if any(counted.rows for counted in metrics.values()):  # an engine that only begins rows may crash on each
            self._progress = time.monotonic()
            self._engines[engine].deaths = 0
        return self._stopping

    def fail(self, error: CgdError) -> None:
        """Record that an engine, and so the run, cannot continue."""
        self._broken = self._broken or error

    def stop(self) -> None:
        """Ask the engines to stop."""
        self._stopping = True

    def stopped(self, engine: str) -> None:
        """Record that an engine has written its finished results and does nothing more."""
        self._engines[engine].is_stopped = True

    def all_stopped(self) -> bool:
        """Whether all engines have stopped or are not up."""
        return all(engine.is_stopped or not engine.is_up for engine in self._engines.values())

    def snapshot(self) -> Snapshot:
        """Return the state of the run."""
        engines = sum(engine.is_up for engine in self._engines.values())
        idle = time.monotonic() - self._progress
        broken = self._broken or self._replicas.broken()
        return Snapshot(
            self._metrics,
            engines,
            idle,
            self._deaths - 1,
            self._ceiling,
            broken,
            list(self._troubles),
            sum(engine.is_lost for engine in self._engines.values()),
            self._stranded() if idle > _STRANDED_AFTER_S else 0,
            self._fetching(),
        )

    def _stranded(self) -> int:
        """Count stranded engines: Ray keeps their rows until a node that can hold them arrives, which may be never."""
        living = _living_nodes()
        working = [engine for engine in self._engines.values() if not engine.is_stopped and engine.node]
        gone = [engine for engine in working if engine.node not in living]
        others = [engine for engine in working if engine.node in living]
        is_over = all(engine.is_up and not engine.rows for engine in others)
        return len(gone) if is_over and {engine.role for engine in gone} <= {engine.role for engine in others} else 0

    def _fetching(self) -> Transfer | None:
        transfers = [engine.fetched for engine in self._engines.values() if engine.fetched and not engine.is_up]
        coming = [transfer for transfer in transfers if transfer.done < transfer.total]
        return Transfer(*map(sum, zip(*coming, strict=True))) if coming else None


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@contextlib.contextmanager
def open_coordinator(last_role: str, room: int, pools: Sequence[Pool], cluster: Cluster) -> Iterator[ActorHandle]:
    """Run a coordinator on the driver's own node, so that it is lost only together with the driver.

    Args:
        last_role: rows leave the stream when an engine of this role is done with them.
        room: maximum number of rows in the stream.
        pools: pools of engines; a place for each engine is held until the end.
        cluster: cluster that holds the places.
    """
    coordinator = ray.remote(num_cpus=0, **on_this_node())(_Coordinator).remote(last_role, room, pools)
    try:
        ray.get(coordinator.request_places.remote(cluster))
        yield coordinator
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(coordinator.remove_places.remote(), timeout=CLOSE_TIMEOUT_S)
        ray.kill(coordinator)


def wait_for_room(coordinator: ActorHandle, shard: int, rows: int) -> None:
    """Wait until a shard with `rows` rows may enter the stream."""
    while not ray.get(coordinator.may_read.remote(shard, rows)):
        time.sleep(_ROOM_POLL_INTERVAL_S)


def report_fatal(coordinator: ActorHandle, error: Exception) -> None:
    """Report why the run cannot continue, and wait for its end, so that engines write their results before it.

    Raising the error at once would end all engines and lose their unwritten results.
    """
    ray.get(coordinator.fail.remote(as_ours(error)))
    time.sleep(CLOSE_TIMEOUT_S)


def as_ours(error: BaseException) -> CgdError:
    """Return a `CgdError` unchanged, and any other error as a `CgdError`.

    The text of an unexpected error names its place in the code and this process's log, which gets the traceback.
    """
    if isinstance(error, CgdError):
        return error
    cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, store_errors()):
        return CgdError(f"generation stopped: {cause}")
    show_traceback(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    return CgdError(f"generation stopped by an unexpected error: {cause} ({place}; log: {describe_own_log()})")


def on_this_node() -> dict[str, NodeAffinitySchedulingStrategy]:
    """Return the options of a task or actor that runs only on this process's node."""
    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
