"""Training's arithmetic, kernels and memory estimate on a real GPU, one rank alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.encoded_rows import EncodedRows
from cgd_ray.training.job import StepReport
from cgd_ray.training.loop.trainer import Trainer
from cgd_ray.training.memory import memory, model_sizes
from tests.unit.training.loop import alone, make_job, plain_step
from tests.unit.training.tiny import encoded_rows, write_tiny_model

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_model(folder)
    return folder


def steps(encoded: Table, model: Path, **training: Any) -> list[StepReport]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return list(Trainer(replace(make_job(encoded, model, **training), device="cuda")).steps())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("precision", "off"), [("fp32", 1e-4), ("bf16", 1e-2)])
def test_a_step_is_plain_pytorchs_on_cpu(tmp_path: Path, tiny: Path, stage: int, precision: str, off: float) -> None:
    encoded = encoded_rows(tiny, tmp_path, 8)
    [step] = steps(encoded, tiny, precision=precision, zero_stage=stage)
    _, loss, norm = plain_step(encoded, tiny, make_job(encoded, tiny).training)
    assert step.progress.loss == pytest.approx(loss, rel=off)
    assert step.gradient_norm == pytest.approx(norm, rel=10 * off)


@pytest.mark.parametrize("settings", [{}, {"compile": True}, {"liger": True}, {"gradient_checkpointing": True}])
def test_the_memory_estimate_is_what_training_takes(
    tmp_path: Path, student_dir: Path, settings: dict[str, Any]
) -> None:
    encoded = encoded_rows(student_dir, tmp_path, 64)
    rows = EncodedRows(encoded.read())
    training = {"precision": "bf16", "zero_stage": 2, "batch_size": 32, **settings}
    # Before Liger takes the place of functions that the estimate calls with tensors without memory.
    job = make_job(encoded, student_dir, **training)
    estimate = memory(model_sizes(student_dir, job.training, rows.lengths, rows.supervised), job.training)
    *_, last = steps(encoded, student_dir, **training)  # the first has no moments yet while activations are there
    assert estimate.device == pytest.approx(last.peak_memory, rel=0.15)
