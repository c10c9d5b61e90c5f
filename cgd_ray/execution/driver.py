"""Driver of a run of chains: starts the stream of rows, monitors the engines, and ends them."""

import contextlib
import re
import time
from collections.abc import Callable
from functools import partial

import ray
import ray.data
import ray.exceptions
import structlog
from ray.actor import ActorHandle

from cgd_ray.compat.ray_core import innermost_cause
from cgd_ray.errors import RERUN, CgdError, ConfigError, StoppedError
from cgd_ray.execution.actor_pool import Chain, pools_of, require_chains_fit, set_context, stream_rows, through_pools
from cgd_ray.execution.coordinator import CLOSE_TIMEOUT_S, Snapshot, on_this_node, open_coordinator
from cgd_ray.runtime.capacity import resources_in_use, wait_for_release
from cgd_ray.runtime.cluster import read_cluster

log = structlog.get_logger(__name__)
_POLL_INTERVAL_S = 0.5
_STOP_TIMEOUT_S = 20.0
_FETCH_LOG_INTERVAL_S = 15.0  # between two log lines


def run_chains(
    chains: list[Chain],
    work: Callable[[ActorHandle], ray.data.Dataset],
    watch: Callable[[Snapshot], object],
    stall_seconds: float,
) -> int:
    """Run blocks of work (WORK schema) through the chains, all pools at once; every result is stored at the end.

    Ray Data's executor runs in its own process, so the driver stays free to poll and to be interrupted. If the executor
    hangs, ending its process also ends its pools.

    Args:
        chains: one pool each; rows pass through them in this order.
        work: creates the rows, in small blocks; gets the coordinator, which limits how far it may be ahead of engines.
        watch: called about twice a second and at the end; an exception that it raises ends the run.
        stall_seconds: maximum time without any progress.

    Returns:
        Number of engines lost during the run; the rows that they held are not done.

    Raises:
        ConfigError: the engines would wait for room forever.
        StoppedError: an engine reached its ceiling, there was no progress, or `watch` raised it; finished results are
            kept.
        CgdError: fewer than `min_replicas` engines of a chain can be up; the text is an engine's own error, with the
            tail of its log.
    """
    require_chains_fit(chains)
    before = resources_in_use()
    wanted = sum(chain.replicas for chain in chains)
    cluster = read_cluster()
    look = partial(_look, watch=_Watch(watch), wanted=wanted, stall_seconds=stall_seconds)
    with open_coordinator(chains[-1].role, stream_rows(chains), pools_of(chains, cluster), cluster) as coordinator:
        stream = ray.remote(num_cpus=0, max_retries=0, **on_this_node())(_stream).remote(chains, work, coordinator)
        try:
            stranded = 0
            while not stranded and not _ended_within(stream, _POLL_INTERVAL_S):
                stranded = look(coordinator).stranded
            if stranded:
                log.warning("engines are gone with their nodes; the others have nothing left to do", engines=stranded)
                _stop(coordinator, stream)
            else:
                ray.get(stream)
            lost = look(coordinator).lost + stranded
            _wait_for_engines(coordinator)
        except ray.exceptions.RayError as error:
            ray.cancel(stream, force=True)
            raise _explained(error) from error
        except BaseException:
            _stop(coordinator, stream)
            raise
    wait_for_release(before)
    return lost


def _stream(chains: list[Chain], work: Callable[[ActorHandle], ray.data.Dataset], coordinator: ActorHandle) -> None:
    set_context(chains)
    for _ in through_pools(chains, work(coordinator), coordinator).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    ):
        pass  # results are stored, and the coordinator counts them


def _ended_within(stream: "ray.ObjectRef[None]", seconds: float) -> bool:
    time.sleep(seconds)  # a signal interrupts this at once
    return bool(ray.wait([stream], timeout=0)[0])


class _Watch:
    """Logs loading progress, and each lost engine once, before it calls the caller's watch."""

    def __init__(self, watch: Callable[[Snapshot], object]) -> None:
        self._watch = watch
        self._said = 0
        self._line = time.monotonic()

    def __call__(self, snapshot: Snapshot) -> None:
        for trouble in snapshot.troubles[self._said :]:
            log.warning(trouble)
        self._said = len(snapshot.troubles)
        if snapshot.fetching and time.monotonic() - self._line > _FETCH_LOG_INTERVAL_S:
            self._line = time.monotonic()
            done, total = (f"{size / 1e9:.1f}" for size in snapshot.fetching)
            log.info("engines fetch their models", gigabytes=f"{done}/{total}")
        self._watch(snapshot)


def _wait_for_engines(coordinator: ActorHandle) -> None:
    """Wait until engines exit after their last row; one still running when its place is removed is killed."""
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    while not ray.get(coordinator.is_vacated.remote()) and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL_S)


def _look(
    coordinator: ActorHandle, *, watch: Callable[[Snapshot], object], wanted: int, stall_seconds: float
) -> Snapshot:
    snapshot: Snapshot = ray.get(coordinator.snapshot.remote())
    watch(snapshot)
    if snapshot.ceiling:
        raise StoppedError(f"{snapshot.ceiling}; {RERUN}")
    if snapshot.broken:
        raise snapshot.broken
    if snapshot.idle_seconds > stall_seconds:
        raise StoppedError(
            f"no progress for {snapshot.idle_seconds:.0f} s (generation.stall_timeout_s), with {snapshot.engines} "
            f"of {wanted} engines loaded. Fix: read the engines' logs, or `ray status` if they wait for room; "
            f"{RERUN}{_last(snapshot.troubles)}"
        )
    return snapshot


def _last(troubles: list[str]) -> str:
    return f"; last, {' '.join(troubles[-1].split())}" if troubles else ""


def _stop(coordinator: ActorHandle, stream: "ray.ObjectRef[None]") -> None:
    """Let the engines write finished results, then end them. A second signal ends them without waiting."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(coordinator.stop.remote(), timeout=_STOP_TIMEOUT_S)
        while time.monotonic() < deadline and not _ended_within(stream, _POLL_INTERVAL_S):
            if ray.get(coordinator.all_stopped.remote(), timeout=_STOP_TIMEOUT_S):
                break
    ray.cancel(stream, force=True)


_OURS = re.compile(r"cgd_ray\.errors\.(?P<kind>\w+): (?P<text>.*?)(?=\n\n|\nThe above exception|\Z)", re.DOTALL)


def _explained(error: BaseException) -> CgdError:
    """Return our innermost error in a chain of Ray's wrappers, else the innermost cause and the place of its log."""
    text = str(error)
    ours = list(_OURS.finditer(text))
    if ours:
        kind = ConfigError if ours[-1]["kind"] == ConfigError.__name__ else CgdError
        return kind(ours[-1]["text"].strip())
    cause = innermost_cause(error)
    return CgdError(f"generation stopped: {cause.line}{cause.log}")
