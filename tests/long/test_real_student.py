"""The invariants of training that are shown on a tiny model elsewhere, on SmolLM2-135M in fp32."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cgd_ray.errors import StoppedError
from cgd_ray.storage.tables import Table
from cgd_ray.training.job import StepReport
from cgd_ray.training.worker import train_rank
from tests.unit.training.loop import ROWS, alone, distance, make_job, plain_step, trained
from tests.unit.training.tiny import encoded_rows

RATE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture(scope="module")
def encoded(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return encoded_rows(student_dir, tmp_path_factory.mktemp("root"), ROWS)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_step_equals_plain_pytorch(encoded: Table, student_dir: Path, stage: int) -> None:
    job = make_job(encoded, student_dir, zero_stage=stage, weight_decay=0.1, learning_rate=RATE, checkpoint_every=1)
    reports: list[StepReport] = []

    def keep(step: StepReport) -> bool:
        reports.append(step)
        return False

    train_rank(replace(job, checkpoints=f"checkpoints-{stage}", student=f"student-{stage}"), keep)
    expected, loss, norm = plain_step(encoded, student_dir, job.training)
    assert reports[0].progress.loss == pytest.approx(loss, rel=1e-4)
    assert reports[0].gradient_norm == pytest.approx(norm, rel=1e-3)
    weights = exported(encoded, f"student-{stage}")
    rounded = {name: expected[name].detach().bfloat16() for name in weights}
    assert max((weights[name] != rounded[name]).float().mean().item() for name in weights) < 0.02


def test_eight_passes_of_one_row_equal_one_pass_of_eight_rows(encoded: Table, student_dir: Path) -> None:
    settings = {"zero_stage": 2, "learning_rate": RATE, "epochs": 2}
    apart, one_by_one = trained(make_job(encoded, student_dir, micro_batch_tokens=1, **settings))
    together, at_once = trained(make_job(encoded, student_dir, micro_batch_tokens=4096, **settings))
    assert [step.progress.loss for step in one_by_one] == pytest.approx(
        [step.progress.loss for step in at_once], rel=1e-4
    )
    assert distance(apart, together) < RATE  # of 2 e-5 that Adam can move a weight


def test_interrupted_equals_uninterrupted(encoded: Table, student_dir: Path) -> None:
    job = make_job(encoded, student_dir, batch_size=2, learning_rate=RATE, checkpoint_every=100)
    stopped = replace(job, checkpoints="stopped", student="stopped-student")
    with pytest.raises(StoppedError):
        train_rank(stopped, lambda step: step.progress.step == 1)
    assert train_rank(stopped, lambda _: False).resumed_from_step == 2
    train_rank(replace(job, checkpoints="whole", student="whole-student"), lambda _: False)
    one, other = (exported(encoded, f"{name}-student") for name in ("stopped", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def exported(encoded: Table, name: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(encoded.store.path(f"{name}/model.safetensors"))
    return weights
