"""Show optimiser steps from the driver while it waits: workers print to their own log files."""

import contextlib
import threading
import time
from collections.abc import Iterator

import ray
import ray.exceptions
import structlog
from ray.actor import ActorHandle

from cgd_ray.training.job import StepReport

log = structlog.get_logger(__name__)
_POLL_SECONDS = 1.0
_LINE_SECONDS = 15.0
_SILENT_SECONDS = 60.0  # Ray Train logs nothing while it waits for workers


class _Board:
    """An actor between driver and rank 0: rank 0 writes each step; the driver reads it, and may request a stop."""

    def __init__(self) -> None:
        self._last: StepReport | None = None
        self._must_stop = False

    def put(self, step: StepReport) -> bool:
        self._last = step
        return self._must_stop

    def stop(self) -> None:
        self._must_stop = True

    def last(self) -> StepReport | None:
        return self._last


@contextlib.contextmanager
def shown_steps() -> Iterator[ActorHandle]:
    """Log a line for the first step and then every few seconds; yield the board's actor for the workers."""
    board = ray.remote(num_cpus=0)(_Board).remote()
    done = threading.Event()
    reader = threading.Thread(target=_show, args=(board, done), daemon=True)
    reader.start()
    try:
        yield board
    finally:
        done.set()
        reader.join()
        ray.kill(board)


def _show(board: ActorHandle, done: threading.Event) -> None:
    shown, line, since = 0, 0.0, time.monotonic()
    while not done.wait(_POLL_SECONDS):
        # The board may be lost with its node; training continues without these lines.
        with contextlib.suppress(ray.exceptions.RayError):
            step = ray.get(board.last.remote(), timeout=10)
            now = time.monotonic()
            if step and step.progress.step != shown and now - line > _LINE_SECONDS:
                shown, line, since = step.progress.step, now, now
                log.info("training", **step.shown())
            elif now - max(line, since) > _SILENT_SECONDS:
                line = now
                log.info(
                    "training: no new step; workers wait for nodes, load or save", last=shown, seconds=int(now - since)
                )
