"""The loop of one rank, alone in its process group: what it computes is checked against plain PyTorch."""

import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from cgd_ray.config.training import LoraSection
from cgd_ray.errors import CgdError, StoppedError
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.tables import Table
from cgd_ray.training.checkpoint.checkpoints import Checkpoints
from cgd_ray.training.dataset.packing import batches
from cgd_ray.training.job import DivergedError, GpuMemoryError, RefusedError, StepReport
from cgd_ray.training.loop import trainer
from cgd_ray.training.loop.trainer import Trainer, train_rank
from tests.unit.training.loop import ROWS, distance, make_job, mean_loss, plain_step, trained
from tests.unit.training.tiny import encoded_rows

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def encoded(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return encoded_rows(tiny_dir, tmp_path_factory.mktemp("root"), ROWS)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_one_step_equals_plain_pytorch(encoded: Table, tiny_dir: Path, stage: int) -> None:
    job = make_job(encoded, tiny_dir, zero_stage=stage, weight_decay=0.1, max_grad_norm=0.5)
    weights, reports = trained(job)
    expected, loss, norm = plain_step(encoded, tiny_dir, job.training)
    assert reports[0].progress.loss == pytest.approx(loss, rel=1e-5)
    assert reports[0].gradient_norm == pytest.approx(norm, rel=1e-4)  # Adam hides a wrong scale of the gradient
    assert norm > job.training.max_grad_norm  # so that clipping is part of this test
    # Adam's first step is the gradient's sign times the rate: a wrong sign or decay would be 1e-3 or 1e-4 away.
    assert distance(weights, expected) < 1e-5


@pytest.mark.parametrize("stage", [0, 2])
def test_eight_passes_of_one_row_equal_one_pass_of_eight_rows(encoded: Table, tiny_dir: Path, stage: int) -> None:
    apart, one_by_one = trained(make_job(encoded, tiny_dir, zero_stage=stage, micro_batch_tokens=1, epochs=3))
    together, at_once = trained(make_job(encoded, tiny_dir, zero_stage=stage, micro_batch_tokens=4096, epochs=3))
    losses = [[step.progress.loss for step in steps] for steps in (one_by_one, at_once)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert distance(apart, together) < 1e-4


def test_bf16_keeps_fp32_master_weights(encoded: Table, tiny_dir: Path) -> None:
    rank = Trainer(make_job(encoded, tiny_dir, precision="bf16", zero_stage=2))
    assert next(rank.engine.module.parameters()).dtype is torch.bfloat16
    states = [state for group in rank.engine.optimizer.param_groups for state in group["params"]]
    assert {state.dtype for state in states} == {torch.float32}


def test_a_row_that_breaks_the_loss_is_named(encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(encoded, tiny_dir, batch_size=2, micro_batch_tokens=1)
    rank = Trainer(job)
    broken = next(batches(ROWS, 2, 1, seed=0))[0]
    bad = rank.rows.row(int(broken))[0]

    def loss(model: Any, rows: Any, _: torch.device, **__: bool) -> torch.Tensor:
        value = model(input_ids=torch.from_numpy(rows.input_ids)[None], use_cache=False).logits.mean()
        return value * float("nan") if rows.input_ids.tolist() == bad.tolist() else value

    monkeypatch.setattr("cgd_ray.training.loop.trainer.summed_loss", loss)
    with pytest.raises(DivergedError) as caught:
        list(rank.steps())
    assert rank.rows.key(int(broken)) in str(caught.value)
    assert str(caught.value).count("/0") == 1


def test_checkpoints_come_when_due_and_the_last_step_always_has_one(encoded: Table, tiny_dir: Path) -> None:
    job = make_job(encoded, tiny_dir, batch_size=3, checkpoint_interval=2)
    outcome = train_rank(job, lambda _: False)
    assert encoded.store.folders(job.checkpoints) == ["step-00000002", "step-00000003"]
    assert (outcome.progress.step, outcome.rows, outcome.resumed_from_step) == (3, ROWS, None)


def test_who_is_asked_to_stop_writes_a_checkpoint_and_goes_on_as_if_nothing_had_happened(
    encoded: Table, tiny_dir: Path
) -> None:
    job = make_job(encoded, tiny_dir, batch_size=2, checkpoint_interval=100)
    stopped, whole = replace(job, checkpoints="stopped"), replace(job, checkpoints="whole")
    losses: dict[str, dict[int, float]] = {"stopped": {}, "whole": {}}

    def report(name: str, step: StepReport) -> bool:
        losses[name][step.progress.step] = step.progress.loss
        return step.progress.step == 1

    with pytest.raises(StoppedError, match="training stopped after step 2 of 4"):
        train_rank(stopped, partial(report, "stopped"))
    outcome = train_rank(stopped, partial(report, "stopped"))
    assert (outcome.resumed_from_step, outcome.progress.step) == (2, 4)
    train_rank(whole, lambda step: report("whole", step) and False)
    assert losses["stopped"] == losses["whole"]


def test_a_full_disk_is_said_before_anything_is_written(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tiny_dir)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100_000))
    job = replace(make_job(encoded, tiny_dir), checkpoints="full")
    with pytest.raises(CgdError, match=r"full: 0 MiB are free, and a checkpoint takes \d+ MiB\. Fix: make room"):
        train_rank(job, lambda _: False)
    assert encoded.store.folders("full") == []


def test_a_folder_without_progress_is_no_checkpoint(encoded: Table, tiny_dir: Path) -> None:
    job = replace(make_job(encoded, tiny_dir, batch_size=3, checkpoint_interval=1), checkpoints="torn")
    train_rank(job, lambda _: False)
    encoded.store.remove("torn/step-00000003/progress.json")
    again = train_rank(job, lambda _: False)
    assert (again.resumed_from_step, again.progress.step) == (2, 3)
    assert encoded.store.exists("torn/step-00000003/progress.json")
    assert len(encoded.store.folders("torn/step-00000003")) == 1  # what the torn one held is gone


def test_a_second_start_that_dies_as_it_writes_a_step_again_leaves_the_whole_checkpoint(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    job = replace(make_job(encoded, tiny_dir, checkpoint_interval=1), checkpoints="twice")
    train_rank(job, lambda _: False)
    rank = Trainer(job)
    before = Checkpoints(encoded.store, "twice", keep=1).restore(rank.engine)
    weights = {name: weight.detach().clone() for name, weight in rank.engine.module.named_parameters()}
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(Store, "write", die)
        for weight in rank.engine.module.parameters():
            weight.zero_()
        second = Checkpoints(encoded.store, "twice", keep=1)
        second.save(rank.engine, before)
        with pytest.raises(KeyboardInterrupt):
            second.wait()
    assert Checkpoints(encoded.store, "twice", keep=1).restore(rank.engine) == before
    assert distance(dict(rank.engine.module.named_parameters()), weights) == 0


FULL = {
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...": "CUDA out of memory",
    "CUDA error: out of memory\nCompile with ...": "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "CUBLAS_STATUS_ALLOC_FAILED",
    "NCCL error in: ...\nLast error:\nCuda failure 2 'out of memory'": "Cuda failure 2 'out of memory",
}


@pytest.mark.parametrize("text", FULL)
def test_a_full_gpu_is_said_with_what_helps(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def fill(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError(text) if "Tried" in text else RuntimeError(text)

    monkeypatch.setattr(trainer, "summed_loss", fill)
    reason = re.escape(FULL[text])
    with pytest.raises(GpuMemoryError, match=rf"no room \({reason}\)\. Fix: lower training.micro_batch_tokens"):
        train_rank(replace(make_job(encoded, tiny_dir), checkpoints="full-gpu"), lambda _: False)


def test_another_error_of_pytorch_is_no_full_gpu(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trainer, "summed_loss", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train_rank(replace(make_job(encoded, tiny_dir), checkpoints="broken-gpu"), lambda _: False)


def test_validation_loss_is_of_all_rows_set_aside_which_are_not_trained_on(encoded: Table, tiny_dir: Path) -> None:
    rank = Trainer(make_job(encoded, tiny_dir, validation_fraction=0.4, batch_size=2, micro_batch_tokens=64))
    assert len(rank.validated) >= 2
    assert sorted([*rank.trained, *rank.validated]) == list(range(ROWS))
    seen: list[int] = []
    passes = rank.passes_of
    rank.passes_of = lambda batch: seen.extend(batch) or passes(batch)  # type: ignore[func-returns-value,method-assign]
    list(rank.steps())
    assert sorted(seen) == rank.trained.tolist()
    rank.passes_of = passes  # type: ignore[method-assign]
    rank.validate()
    expected = mean_loss(encoded, rank.engine.module.eval(), rank.validated.tolist())
    assert rank.progress.validation_loss == pytest.approx(expected, rel=1e-5)


def test_the_best_checkpoint_becomes_the_student(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(
        encoded, tiny_dir, validation_fraction=0.4, export="best", checkpoint_interval=1, keep_checkpoints=1,
        batch_size=2, epochs=6, loss_spike=None,
    )  # fmt: skip
    # What was learnt is destroyed in the second half.
    rate = "cgd_ray.training.loop.trainer.learning_rate"
    monkeypatch.setattr(rate, lambda _training, step, total: 1e-3 if step < total // 2 else 1.0)
    job = replace(job, checkpoints="best", student="best-student")
    losses: dict[int, float] = {}

    def report(step: StepReport) -> bool:
        assert step.progress.validation_loss is not None
        losses[step.progress.step] = step.progress.validation_loss
        return False

    outcome = train_rank(job, report)
    best = min(losses, key=lambda step: losses[step])
    assert outcome.exported_step == best < outcome.progress.step  # else this proves nothing
    assert encoded.store.folders("best") == [f"step-{step:08d}" for step in (best, outcome.progress.step)]
    student = AutoModelForCausalLM.from_pretrained(encoded.store.path("best-student"), dtype=torch.float32)
    aside = Trainer(job).validated.tolist()
    assert mean_loss(encoded, student.eval(), aside) == pytest.approx(losses[best], rel=1e-2)  # rounded to bfloat16


def test_a_checkpoint_under_way_is_written_where_training_diverges(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(make_job(encoded, tiny_dir, batch_size=2, checkpoint_interval=2), checkpoints="diverging")
    write, step = Checkpoints._write, Trainer._step

    def slowly(checkpoints: Checkpoints, *what: Any) -> None:
        time.sleep(1)
        write(checkpoints, *what)

    def diverging(rank: Trainer, number: int, batch: list[int], rate: float) -> tuple[float, float]:
        if number == 2:
            raise DivergedError("as told")
        return step(rank, number, batch, rate)

    monkeypatch.setattr(Checkpoints, "_write", slowly)
    monkeypatch.setattr(Trainer, "_step", diverging)
    with pytest.raises(DivergedError):
        train_rank(job, lambda _: False)
    assert encoded.store.exists(f"{job.checkpoints}/step-00000002/progress.json")


def test_a_loss_spike_stops_before_it_changes_a_weight(encoded: Table, tiny_dir: Path) -> None:
    rank = Trainer(make_job(encoded, tiny_dir, epochs=10))
    rank.progress = replace(rank.progress, recent=(0.5,) * 8)  # as if it had learnt much; it is a random model
    before = {name: weight.detach().clone() for name, weight in rank.engine.module.named_parameters()}
    with pytest.raises(
        DivergedError, match=r"step 1 of 10: the loss 6\.\d+ is 5\.\d+ above .* in rows 0{30}"
    ) as caught:
        list(rank.steps())
    assert "\n" not in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in rank.engine.module.named_parameters())
    lenient = Trainer(make_job(encoded, tiny_dir, loss_spike=None))
    lenient.progress = rank.progress
    assert len(list(lenient.steps())) == 1


def test_rows_that_a_line_has_no_room_for_are_all_named_in_a_file(tiny_dir: Path, tmp_path: Path) -> None:
    many = encoded_rows(tiny_dir, tmp_path, 12)
    job = make_job(many, tiny_dir, batch_size=12, epochs=10)
    rank = Trainer(job)
    rank.progress = replace(rank.progress, recent=(0.5,) * 8)
    with pytest.raises(DivergedError, match=r"and 4 more \(all in .*checkpoints/diverged-step-1\.txt\)"):
        list(rank.steps())
    keys = (tmp_path / "checkpoints" / "diverged-step-1.txt").read_text().split("\n")
    assert len(set(keys[:-1])) == 12


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_many_passes_in_bfloat16_add_up_in_fp32(encoded: Table, tiny_dir: Path, stage: int) -> None:
    """Of eight rows in a pass each: a sum in bfloat16 would lose the last passes' share of it."""
    settings = {"precision": "bf16", "zero_stage": stage, "batch_size": ROWS}
    _, apart = trained(make_job(encoded, tiny_dir, micro_batch_tokens=1, **settings))
    _, together = trained(make_job(encoded, tiny_dir, micro_batch_tokens=4096, **settings))
    plain = make_job(encoded, tiny_dir, precision="fp32", zero_stage=0, batch_size=ROWS)
    _, exact = trained(plain)
    norms = [steps[0].gradient_norm for steps in (apart, together, exact)]
    assert norms[0] == pytest.approx(norms[1], rel=3e-3)
    assert norms[0] == pytest.approx(norms[2], rel=2e-2)


def test_kernels_for_gpus_are_refused_without_one(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RefusedError, match=r"^training\.liger: its kernels are for GPUs"):
        Trainer(make_job(encoded, tiny_dir, liger=True))
    monkeypatch.setattr("cgd_ray.training.loop.kernels.find_spec", lambda _: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RefusedError, match=r"^training\.liger: install the package liger-kernel"):
        Trainer(make_job(encoded, tiny_dir, liger=True))


CHECKPOINTED = {"gradient_checkpointing": True, "attention": "sdpa", "lora": LoraSection(rank=4, alpha=8)}


@pytest.mark.parametrize("settings", [{}, CHECKPOINTED])
def test_compiled_layers_train_the_same_weights(encoded: Table, tiny_dir: Path, settings: dict[str, Any]) -> None:
    settings = {"batch_size": 3, "epochs": 2, "micro_batch_tokens": 64, "validation_fraction": 0.3, **settings}
    compiled, plain = (Trainer(make_job(encoded, tiny_dir, compile=each, **settings)) for each in (True, False))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        next(Trainer(compiled.job).steps())
    assert "CompiledFunctionBackward" in {event.key for event in profiled.key_averages()}
    for _ in zip(compiled.steps(), plain.steps(), strict=True):
        compiled.validate()
        plain.validate()
        losses = [(rank.progress.loss, rank.progress.validation_loss) for rank in (compiled, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    weights = [dict(rank.engine.module.named_parameters()) for rank in (compiled, plain)]
    assert distance(*weights) < 1e-4  # three steps of 1e-3


def test_what_compiling_needs_is_said(encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RefusedError, match=r"^training\.compile: there is no C\+\+ compiler 'no-such-compiler'"):
        Trainer(make_job(encoded, tiny_dir, compile=True))
    monkeypatch.delenv("CXX")
    with pytest.raises(RefusedError, match=r"^training\.compile: under gradient_checkpointing"):
        Trainer(make_job(encoded, tiny_dir, compile=True, gradient_checkpointing=True))
    with pytest.raises(ValidationError, match=r"compile with zero_stage 3"):
        make_job(encoded, tiny_dir, compile=True, zero_stage=3)


@pytest.mark.parametrize("fraction", [1e-6, 0.999])
def test_a_share_that_leaves_nothing_is_refused(encoded: Table, tiny_dir: Path, fraction: float) -> None:
    with pytest.raises(CgdError, match=r"training\.validation_fraction .* would be set aside"):
        Trainer(make_job(encoded, tiny_dir, validation_fraction=fraction))


def test_the_loop_needs_no_ray() -> None:
    code = "import sys, cgd_ray.training.loop.trainer; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
