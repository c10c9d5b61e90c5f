"""What one Ray Train worker runs: the rank's loop, with checkpoints and progress wired to Ray Train."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import ray.train
import structlog

from cgd_ray.training.job import DivergedError, RankJob, RankOutcome, StepReport

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Refused:
    """Training ended in a way that a restart would only repeat, so Ray Train must not see it as a failure."""

    reason: str


def train_on_ray(job: RankJob) -> RankOutcome | Refused:
    """Train from Ray Train's last checkpoint, if there is one."""
    from cgd_ray.training.worker import train_rank  # DeepSpeed, which the driver does without

    checkpoint = ray.train.get_checkpoint()
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            return train_rank(job, _report, resume=Path(folder) if folder else None)
    except DivergedError as error:
        return Refused(str(error))


def _report(step: StepReport) -> None:
    """Log on rank 0; hand a checkpoint to Ray Train, which puts the ranks' shards together in the run's folder."""
    if ray.train.get_context().get_world_rank() == 0:
        log_step(step)
    if step.checkpoint is None:
        return
    # Named by step: what a kill left half uploaded is overwritten when the step is done again.
    ray.train.report(
        {"step": step.progress.step, "loss": step.progress.loss},
        checkpoint=ray.train.Checkpoint.from_directory(step.checkpoint),
        checkpoint_dir_name=f"step-{step.progress.step:08d}",
    )


def log_step(step: StepReport) -> None:
    """One progress line."""
    log.info(
        "train",
        step=f"{step.progress.step}/{step.steps}",
        loss=round(step.progress.loss, 4),
        lr=f"{step.learning_rate:.2e}",
        grad_norm=round(step.gradient_norm, 3),
        supervised_tok_s=round(step.supervised_tokens / step.seconds),
        total_tok_s=round(step.total_tokens / step.seconds),
    )
