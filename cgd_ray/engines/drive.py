"""The driver of a run of chains: it waits for the rows, watches the engines, and ends them."""

import contextlib
import threading
import time
from collections.abc import Callable

import ray
import ray.data
import ray.data.exceptions
import ray.exceptions
from ray.actor import ActorHandle

from cgd_ray.engines.ledger import Snapshot, open_ledger
from cgd_ray.engines.pool import Chain, require_chains_fit, through_pools
from cgd_ray.errors import CgdError, StoppedError

_LOOK_SECONDS = 0.5
_STOP_SECONDS = 20.0


def run_chains(
    chains: list[Chain], work: ray.data.Dataset, watch: Callable[[Snapshot], object], stall_seconds: float
) -> None:
    """Take blocks of work (WORK schema) through the chains, all pools at once; every result is on storage at the end.

    Args:
        chains: one pool each; rows walk them in this order.
        work: the rows, in small blocks.
        watch: called about twice a second and at the end; what it raises ends the run.
        stall_seconds: the longest time without any progress.

    Raises:
        ConfigError: the engines could only wait for ever for room.
        StoppedError: an engine reached its ceiling, nothing went on, or `watch` said so; what was finished is kept.
        CgdError: an engine could not start or died; the text is the engine's own, with the tail of its log.
    """
    require_chains_fit(chains)
    wanted = sum(chain.replicas for chain in chains)
    with open_ledger() as ledger:
        drain = _Drain(through_pools(chains, work, ledger))
        try:
            while not drain.ended_within(_LOOK_SECONDS):
                _look(ledger, watch, wanted, stall_seconds)
            _look(ledger, watch, wanted, stall_seconds)
        except BaseException:
            _stop(ledger, drain)
            raise
        drain.raise_error()


def _look(ledger: ActorHandle, watch: Callable[[Snapshot], object], wanted: int, stall_seconds: float) -> None:
    snapshot: Snapshot = ray.get(ledger.snapshot.remote())
    watch(snapshot)
    if snapshot.ceiling:
        raise StoppedError(f"{snapshot.ceiling}; the same command continues where this one stopped")
    if snapshot.idle_seconds > stall_seconds:
        raise StoppedError(
            f"nothing went on for {snapshot.idle_seconds:.0f} s (generation.stall_timeout_s), with {snapshot.engines} "
            f"of {wanted} engines loaded: look at the engines' logs, or at `ray status` where they wait for room; the "
            "same command continues"
        )


def _stop(ledger: ActorHandle, drain: "_Drain") -> None:
    """Let the engines write what is finished, then end them. A second signal does not wait."""
    deadline = time.monotonic() + _STOP_SECONDS
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(ledger.stop.remote(), timeout=_STOP_SECONDS)
        while time.monotonic() < deadline and not drain.ended_within(_LOOK_SECONDS):
            if ray.get(ledger.all_stopped.remote(), timeout=_STOP_SECONDS):
                break
    drain.stop()
    drain.ended_within(max(1.0, deadline - time.monotonic()))


class _Drain:
    """Pulls the blocks through on a thread of its own, so that a run in which nothing comes out can still be ended."""

    def __init__(self, done: ray.data.Dataset) -> None:
        self._error: Exception | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._pull, args=(done,), name="drain", daemon=True)
        self._thread.start()

    def ended_within(self, seconds: float) -> bool:
        """Wait so long at most; whether all rows are through, or the run is over."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Take no more blocks."""
        self._stopping.set()

    def raise_error(self) -> None:
        """Raise what ended the run, if anything did."""
        if self._error is not None:
            raise _explained(self._error) from self._error

    def _pull(self, done: ray.data.Dataset) -> None:
        try:
            for _ in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                if self._stopping.is_set():
                    break  # the pools end with the iterator
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            self._error = error


def _explained(error: BaseException) -> CgdError:
    """The innermost CgdError of a chain of Ray's wrappers, else the last line of what Ray says."""
    text = str(error)
    marker = "cgd_ray.errors."
    if marker in text:
        named = text.rsplit(marker, 1)[1]
        return CgdError(named.partition(": ")[2].strip() or named)
    lines = [line for line in text.splitlines() if line.strip()]
    return CgdError(f"generation stopped: {lines[-1] if lines else type(error).__name__}")
