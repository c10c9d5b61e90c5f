"""What one Ray Train worker runs: the rank's loop, with checkpoints and progress wired to Ray Train."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray.train
import structlog
from ray.actor import ActorHandle

from cgd_ray.training.job import DivergedError, RankJob, RankOutcome, StepReport
from cgd_ray.training.steps import step_figures

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Refused:
    """Training ended in a way that a restart would only repeat, so Ray Train must not see it as a failure."""

    reason: str


def train_on_ray(job: RankJob, board: ActorHandle) -> RankOutcome | Refused:
    """Train from Ray Train's last checkpoint, if there is one; `board` is the actor of `shown_steps`."""
    from cgd_ray.training.worker import train_rank  # DeepSpeed, which the driver does without

    checkpoint = ray.train.get_checkpoint()
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            return train_rank(job, partial(_report, board), resume=Path(folder) if folder else None)
    except DivergedError as error:
        return Refused(str(error))


def _report(board: ActorHandle, step: StepReport) -> None:
    """Show the step on rank 0; hand a checkpoint to Ray Train, which puts the ranks' shards together."""
    if ray.train.get_context().get_world_rank() == 0:
        log.info("train", **step_figures(step))
        board.put.remote(step)  # not waited for, and no error of ours where the board is gone
    if step.checkpoint is None:
        return
    # Named by step: what a kill left half uploaded is overwritten when the step is done again.
    ray.train.report(
        {"step": step.progress.step, "loss": step.progress.loss},
        checkpoint=ray.train.Checkpoint.from_directory(step.checkpoint),
        checkpoint_dir_name=f"step-{step.progress.step:08d}",
    )
