"""The Ray session of a command: joined where there is a cluster, started and ended where there is none."""

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
    """Connect to Ray for the length of a command.

    Inside a submitted job, or where `RAY_ADDRESS` is set, the running cluster is joined; elsewhere a local one is
    started and ended with the command. What a SIGKILL left of an earlier command on this node is ended first. A process
    that is connected already, such as a notebook, stays so.

    Raises:
        CgdError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    ended = processes.end_orphans()
    if ended:
        log.warning("ended processes that an earlier run left behind", count=ended)
    before = processes.children()
    _connect()
    # For the next start: most of Ray's processes end with a killed driver, its agents do not.
    cluster = _record_cluster(before)
    try:
        # Only now: connecting puts a handler of Ray's own in place, which aborts.
        with _signals_end_the_run():
            yield
    finally:
        # Again: workers came, and one may not notice that its cluster ended. Where Ray's raylet was killed, its agents
        # are no longer children of ours, and the first record has them.
        cluster += _record_cluster(before)
        ray.shutdown()
        processes.end(cluster)
        processes.end_orphans()


def _record_cluster(before: set[int]) -> list[processes.Record]:
    """Write down the processes of the cluster that this command started; none where it joined one."""
    return [] if joins_cluster() else [processes.record(pid, "ray") for pid in processes.children() - before]


def joins_cluster() -> bool:
    """Whether commands join a running cluster, which may grow."""
    return bool(os.environ.get("RAY_ADDRESS"))  # Ray sets it for the driver of a submitted job


def in_job() -> bool:
    """Whether this process is the driver of a submitted job, whose working directory is Ray's."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _connect() -> None:
    # Workers inherit the driver's environment where Ray is started here; keep tokenizers from forking warnings there.
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
    except Exception as error:  # of a node that starts too slowly, Ray raises nothing more exact
        raise CgdError(f"cannot connect to Ray: {' '.join(str(error).split())}") from error
    quiet_libraries()  # connecting set up their loggers


@contextlib.contextmanager
def _signals_end_the_run() -> Iterator[None]:
    """SIGTERM becomes an exception, so that a preempted run ends as an interrupted one does."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise StoppedError(f"stopped by signal {signal.Signals(number).name}; {RERUN}")

    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
