"""The Ray session of a command: join a running cluster, or start a local one and end it with the command."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import ray
import structlog

from cgd_ray.errors import RERUN, CgdError, StoppedError
from cgd_ray.runtime import processes
from cgd_ray.runtime.device import asks_for_gpus
from cgd_ray.runtime.logs import quiet_libraries

log = structlog.get_logger(__name__)


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to Ray while a command runs.

    Joins the running cluster inside a submitted job, or if `RAY_ADDRESS` is set; otherwise starts a local one and ends
    it with the command. First ends processes that a SIGKILL left of an earlier command on this node. A process that is
    already connected, such as a notebook, keeps its connection, and its cluster counts as a joined one.

    Raises:
        CgdError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        with _joined(ray.get_runtime_context().gcs_address):
            yield
        return
    ended = processes.end_orphans()
    if ended:
        log.warning("ended processes that an earlier run left behind", count=ended)
    before = processes.children()
    _connect()
    # For the next start: most of Ray's processes end when the driver is killed, but its agents do not.
    cluster = _record_cluster(before)
    try:
        # Only now: connecting installs Ray's own signal handler, which aborts.
        with _signals_end_the_run():
            yield
    finally:
        # Record again: workers were added, and a worker may not notice that its cluster ended. If Ray's raylet was
        # killed, its agents are no longer children of this process, but the first record has them.
        cluster += _record_cluster(before)
        ray.shutdown()
        processes.end(cluster)
        processes.end_orphans()


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Name the cluster that this process joined by itself, for `joins_cluster`."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = before or address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_ADDRESS"]
        else:
            os.environ["RAY_ADDRESS"] = before


def _record_cluster(before: set[int]) -> list[processes.Record]:
    """Record the processes of the cluster that this command started; none if it joined one."""
    return [] if joins_cluster() else [processes.record(pid, "ray") for pid in processes.children() - before]


def joins_cluster() -> bool:
    """Whether commands join a running cluster, which may grow."""
    return bool(os.environ.get("RAY_ADDRESS"))  # Ray sets it for the driver of a submitted job


def in_job() -> bool:
    """Whether this process is the driver of a submitted job, whose working directory Ray sets."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _connect() -> None:
    # Workers inherit the driver's environment if Ray is started here; this avoids fork warnings of tokenizers there.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet_libraries()
    try:
        if joins_cluster():
            ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                num_gpus=None if asks_for_gpus() else 0,  # None: as many as Ray finds
            )
    except Exception as error:  # Ray raises no more specific error for a node that starts too slowly
        raise CgdError(f"cannot connect to Ray: {' '.join(str(error).split())}") from error
    quiet_libraries()  # connecting has configured their loggers


@contextlib.contextmanager
def _signals_end_the_run() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that a preempted run ends like an interrupted one."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise StoppedError(f"stopped by signal {signal.Signals(number).name}; {RERUN}")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
