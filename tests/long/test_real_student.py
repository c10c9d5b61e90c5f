"""The invariants of training that are shown on a tiny model elsewhere, on SmolLM2-135M in fp32.

Each in a process of its own: DeepSpeed keeps every engine of a process, gigabytes here.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cgd_ray.errors import StoppedError
from cgd_ray.storage.tables import Table
from cgd_ray.training.job import RankJob, StepReport
from tests.ranks import Ranks, ranks
from tests.unit.training.loop import ROWS, distance, make_job, plain_step, trained
from tests.unit.training.tiny import encoded_rows

RATE = 1e-5


@pytest.fixture
def process() -> Iterator[Ranks]:
    with ranks(1) as started:
        yield started


@pytest.fixture(scope="module")
def encoded(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return encoded_rows(student_dir, tmp_path_factory.mktemp("root"), ROWS)


def first_step(job: RankJob) -> tuple[float, float]:
    """On one rank: loss and gradient norm of the first step of a whole training."""
    from cgd_ray.training.loop.trainer import train_rank

    reports: list[StepReport] = []
    train_rank(job, lambda step: bool(reports.append(step)))  # type: ignore[func-returns-value]
    return reports[0].progress.loss, reports[0].gradient_norm


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_step_equals_plain_pytorch(process: Ranks, encoded: Table, student_dir: Path, stage: int) -> None:
    job = make_job(encoded, student_dir, zero_stage=stage, weight_decay=0.1, learning_rate=RATE, checkpoint_interval=1)
    job = replace(job, checkpoints=f"checkpoints-{stage}", student=f"student-{stage}")
    [(its_loss, its_norm)] = process.run(first_step, job)
    expected, loss, norm = plain_step(encoded, student_dir, job.training)
    assert its_loss == pytest.approx(loss, rel=1e-4)
    assert its_norm == pytest.approx(norm, rel=1e-3)
    weights = exported(encoded, f"student-{stage}")
    rounded = {name: expected[name].detach().bfloat16() for name in weights}
    assert max((weights[name] != rounded[name]).float().mean().item() for name in weights) < 0.02


def both(jobs: list[RankJob]) -> tuple[list[list[float]], float]:
    """On one rank: the losses of two trainings, and how far their weights are from each other."""
    (one, its_steps), (other, other_steps) = (trained(job) for job in jobs)
    return [[step.progress.loss for step in steps] for steps in (its_steps, other_steps)], distance(one, other)


def test_eight_passes_of_one_row_equal_one_pass_of_eight_rows(
    process: Ranks, encoded: Table, student_dir: Path
) -> None:
    settings = {"zero_stage": 2, "learning_rate": RATE, "epochs": 2}
    jobs = [make_job(encoded, student_dir, micro_batch_tokens=tokens, **settings) for tokens in (1, 4096)]
    [(losses, apart)] = process.run(both, jobs)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert apart < RATE  # of 2 e-5 that Adam can move a weight


def interrupt(job: RankJob) -> int | None:
    """On one rank: stop after the second step, and train on; the step that it went on from."""
    from cgd_ray.training.loop.trainer import train_rank

    with pytest.raises(StoppedError):
        train_rank(job, lambda step: step.progress.step == 1)
    return train_rank(job, lambda _: False).resumed_from_step


def test_interrupted_equals_uninterrupted(process: Ranks, encoded: Table, student_dir: Path) -> None:
    job = make_job(encoded, student_dir, batch_size=2, learning_rate=RATE, checkpoint_interval=100)
    stopped, whole = (replace(job, checkpoints=name, student=f"{name}-student") for name in ("stopped", "whole"))
    assert process.run(interrupt, stopped) == [2]
    process.run(first_step, whole)
    one, other = (exported(encoded, f"{name}-student") for name in ("stopped", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def exported(encoded: Table, name: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(encoded.store.path(f"{name}/model.safetensors"))
    return weights
