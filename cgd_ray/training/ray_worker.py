"""What one Ray Train worker runs: the rank's loop, with progress wired to the driver."""

import contextlib
from dataclasses import dataclass

import ray
import ray.exceptions
import ray.train
import structlog
from ray.actor import ActorHandle

from cgd_ray.errors import StoppedError
from cgd_ray.training.job import RankJob, RankOutcome, RefusedError, StepReport
from cgd_ray.training.steps import step_figures

log = structlog.get_logger(__name__)
_ANSWER_SECONDS = 1.0  # it takes a millisecond


@dataclass(frozen=True)
class Refused:
    """Training ended in a way that a restart would only repeat, so Ray Train must not see it as a failure."""

    reason: str


def train_on_ray(job: RankJob, board: ActorHandle) -> RankOutcome | Refused:
    """Train from the last checkpoint, if there is one; `board` is the actor of `shown_steps`."""
    from cgd_ray.training.worker import train_rank  # DeepSpeed, which the driver does without

    try:
        return train_rank(job, _Reporter(board))
    except (RefusedError, StoppedError) as error:
        return Refused(str(error))


class _Reporter:
    """Shows each step, which is the same on all ranks, from rank 0, and hears whether to stop."""

    def __init__(self, board: ActorHandle) -> None:
        self._board = board
        self._is_first = ray.train.get_context().get_world_rank() == 0

    def __call__(self, step: StepReport) -> bool:
        """Whether the driver wants training to stop."""
        if not self._is_first:
            return False
        log.info("train", **step_figures(step))
        with contextlib.suppress(ray.exceptions.RayError):  # the board is lost with its node; training goes on
            must_stop: bool = ray.get(self._board.put.remote(step), timeout=_ANSWER_SECONDS)
            return must_stop
        return False
