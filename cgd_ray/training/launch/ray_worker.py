"""Code of one Ray Train worker: the rank's loop, with progress reported to the driver."""

import contextlib
from dataclasses import dataclass

import ray
import ray.exceptions
import ray.train
import structlog
from ray.actor import ActorHandle
from ray.train import PreemptionInfo
from ray.util.metrics import Gauge

from cgd_ray.errors import StoppedError
from cgd_ray.training.job import RankJob, RankOutcome, RefusedError, StepReport

log = structlog.get_logger(__name__)
_ANSWER_SECONDS = 1.0  # an answer takes a millisecond


@dataclass(frozen=True)
class Refused:
    """A final end of training: a restart would only repeat it, so Ray Train must not treat it as a failure."""

    reason: str


def train_on_ray(job: RankJob, board: ActorHandle) -> RankOutcome | Refused:
    """Train from the last checkpoint, if there is one; `board` is the actor of `shown_steps`."""
    from cgd_ray.training.loop.trainer import train_rank  # imports DeepSpeed, which the driver does not need

    try:
        return train_rank(job, _Reporter(board, job.name), _Warnings())
    except (RefusedError, StoppedError) as error:
        return Refused(str(error))


class _Reporter:
    """Reports each step, which is the same on all ranks, from rank 0, and reads whether to stop."""

    def __init__(self, board: ActorHandle, name: str) -> None:
        self._board = board
        self._is_first = ray.train.get_context().get_world_rank() == 0
        self._gauges = _Gauges(name)

    def __call__(self, step: StepReport) -> bool:
        """Report a step; return whether the driver requests a stop."""
        if not self._is_first:
            return False
        log.info("train", **step.shown())
        self._gauges.show(step)
        with contextlib.suppress(ray.exceptions.RayError):  # the board is lost with its node; training goes on
            must_stop: bool = ray.get(self._board.put.remote(step), timeout=_ANSWER_SECONDS)
            return must_stop
        return False


class _Warnings:
    """Checks whether Ray announces the loss of a worker's node (a spot machine's notice, a drained node)."""

    def __init__(self) -> None:
        self._last: PreemptionInfo | None = None

    def __call__(self) -> bool:
        """Return whether there is a new warning, the same on all ranks: Ray synchronizes them."""
        info = ray.train.get_preemption_info()
        is_new, self._last = info is not None and info != self._last, info
        if is_new and ray.train.get_context().get_world_rank() == 0:
            log.warning("a node of this training will be drained; writing a checkpoint")
        return is_new


class _Gauges:
    """Exports the last step's figures as Ray metrics for a cluster's Prometheus: `ray_cgd_training_loss` ..."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._known: dict[str, Gauge] = {}

    def show(self, step: StepReport) -> None:
        for name, value in {"step": float(step.progress.step), **step.figures()}.items():
            if name not in self._known:
                self._known[name] = Gauge(f"cgd_training_{name}", f"{name} of training", tag_keys=("run",))
            self._known[name].set(value, tags=self._tags)
