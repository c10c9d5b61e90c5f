"""The loop of one rank, alone in its process group: what it computes is checked against plain PyTorch."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from torch.nn import functional
from transformers import AutoModelForCausalLM

from cgd_ray.config.training import LoraSection
from cgd_ray.errors import CgdError, StoppedError
from cgd_ray.storage.tables import Table
from cgd_ray.training.checkpoints import Checkpoints
from cgd_ray.training.job import DivergedError, RefusedError, StepReport
from cgd_ray.training.packing import batches
from cgd_ray.training.worker import _Rank, train_rank
from tests.unit.training.loop import ROWS, alone, distance, make_job, plain_step, trained
from tests.unit.training.tiny import encoded_rows, write_tiny_model


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture(scope="module")
def encoded(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return encoded_rows(tiny_dir, tmp_path_factory.mktemp("root"), ROWS)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_one_step_equals_plain_pytorch(encoded: Table, tiny_dir: Path, stage: int) -> None:
    job = make_job(encoded, tiny_dir, zero_stage=stage, weight_decay=0.1, gradient_clipping=0.5)
    weights, reports = trained(job)
    expected, loss, norm = plain_step(encoded, tiny_dir, job.training)
    assert reports[0].progress.loss == pytest.approx(loss, rel=1e-5)
    assert reports[0].gradient_norm == pytest.approx(norm, rel=1e-4)  # Adam hides a wrong scale of the gradient
    assert norm > job.training.gradient_clipping  # so that clipping is part of this test
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
    rank = _Rank(make_job(encoded, tiny_dir, precision="bf16", zero_stage=2))
    assert next(rank.engine.module.parameters()).dtype is torch.bfloat16
    states = [state for group in rank.engine.optimizer.param_groups for state in group["params"]]
    assert {state.dtype for state in states} == {torch.float32}


def test_a_row_that_breaks_the_loss_is_named(encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(encoded, tiny_dir, batch_size=2, micro_batch_tokens=1)
    rank = _Rank(job)
    broken = next(batches(ROWS, 2, 1, seed=0))[0]
    bad = rank.rows.row(int(broken))[0]

    def loss(model: Any, rows: Any, _: torch.device, **__: bool) -> torch.Tensor:
        value = model(input_ids=torch.from_numpy(rows.input_ids)[None], use_cache=False).logits.mean()
        return value * float("nan") if rows.input_ids.tolist() == bad.tolist() else value

    monkeypatch.setattr("cgd_ray.training.worker.summed_loss", loss)
    with pytest.raises(DivergedError) as caught:
        list(rank.steps())
    assert rank.rows.key(int(broken)) in str(caught.value)
    assert str(caught.value).count("/0") == 1


def test_checkpoints_come_when_due_and_the_last_step_always_has_one(encoded: Table, tiny_dir: Path) -> None:
    job = make_job(encoded, tiny_dir, batch_size=3, checkpoint_every=2)
    outcome = train_rank(job, lambda _: False)
    assert encoded.store.folders(job.checkpoints) == ["step-00000002", "step-00000003"]
    assert (outcome.progress.step, outcome.rows, outcome.resumed_from_step) == (3, ROWS, None)


def test_who_is_asked_to_stop_writes_a_checkpoint_and_goes_on_as_if_nothing_had_happened(
    encoded: Table, tiny_dir: Path
) -> None:
    job = make_job(encoded, tiny_dir, batch_size=2, checkpoint_every=100)
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
    with pytest.raises(CgdError, match=r"full: 0 MiB are free, and a checkpoint takes \d+ MiB; make room"):
        train_rank(job, lambda _: False)
    assert encoded.store.folders("full") == []


def test_a_folder_without_progress_is_no_checkpoint(encoded: Table, tiny_dir: Path) -> None:
    job = replace(make_job(encoded, tiny_dir, batch_size=3, checkpoint_every=1), checkpoints="torn")
    train_rank(job, lambda _: False)
    encoded.store.remove("torn/step-00000003/progress.json")
    again = train_rank(job, lambda _: False)
    assert (again.resumed_from_step, again.progress.step) == (2, 3)
    assert encoded.store.exists("torn/step-00000003/progress.json")


def mean_loss(encoded: Table, model: torch.nn.Module, numbers: list[int]) -> float:
    """Mean negative log-likelihood per supervised token of these rows, one by one in plain PyTorch."""
    rows = encoded.read().to_pylist()
    losses, tokens = 0.0, 0
    with torch.no_grad():
        for row in (rows[number] for number in numbers):
            ids, start = torch.tensor(row["input_ids"]), row["target_start"]
            logits = model(input_ids=ids[None]).logits[0, start - 1 : -1]
            losses += functional.cross_entropy(logits, ids[start:], reduction="sum").item()
            tokens += len(ids) - start
    return losses / tokens


def test_validation_loss_is_of_all_rows_set_aside_which_are_not_trained_on(encoded: Table, tiny_dir: Path) -> None:
    rank = _Rank(make_job(encoded, tiny_dir, validation_fraction=0.4, batch_size=2, micro_batch_tokens=64))
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
        encoded, tiny_dir, validation_fraction=0.4, export="best", checkpoint_every=1, keep_checkpoints=1,
        batch_size=2, epochs=6, loss_spike=None,
    )  # fmt: skip
    # What was learnt is destroyed in the second half.
    rate = "cgd_ray.training.worker.learning_rate"
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
    aside = _Rank(job).validated.tolist()
    assert mean_loss(encoded, student.eval(), aside) == pytest.approx(losses[best], rel=1e-2)  # rounded to bfloat16


def test_an_adapter_is_learnt_beside_a_student_in_4_bits(encoded: Table, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, intermediate_size=128)  # bitsandbytes takes blocks of 64 on CPU
    lora = LoraSection(rank=4, alpha=8, quantization="nf4")
    job = make_job(encoded, tmp_path, lora=lora, batch_size=2, epochs=4, learning_rate=1e-2, precision="bf16")
    job = replace(job, checkpoints="qlora", student="qlora-student")
    losses: list[float] = []
    train_rank(job, lambda step: bool(losses.append(step.progress.loss)))  # type: ignore[func-returns-value]
    assert losses[-1] < 0.8 * losses[0]
    rank = _Rank(job)
    kinds = {type(module).__name__ for module in rank.engine.module.modules()}
    assert "Linear4bit" in kinds
    Checkpoints(encoded.store, job.checkpoints, 1).restore(rank.engine)
    in_4_bits = mean_loss(encoded, rank.engine.module.eval(), list(range(ROWS)))
    student = AutoModelForCausalLM.from_pretrained(encoded.store.path(job.student), dtype=torch.float32).eval()
    assert mean_loss(encoded, student, list(range(ROWS))) == pytest.approx(in_4_bits, rel=0.2)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_merged_adapter_is_the_trained_model(encoded: Table, tiny_dir: Path, stage: int) -> None:
    lora = LoraSection(rank=4, alpha=8)
    job = make_job(encoded, tiny_dir, lora=lora, zero_stage=stage, batch_size=2, epochs=4, learning_rate=1e-2)
    job = replace(job, checkpoints=f"lora-{stage}", student=f"lora-student-{stage}")
    losses: list[float] = []
    train_rank(job, lambda step: bool(losses.append(step.progress.loss)))  # type: ignore[func-returns-value]
    assert losses[-1] < 0.8 * losses[0]
    rank = _Rank(job)
    Checkpoints(encoded.store, job.checkpoints, 1).restore(rank.engine)
    unmerged = mean_loss(encoded, rank.engine.module.eval(), list(range(ROWS)))
    student = AutoModelForCausalLM.from_pretrained(encoded.store.path(job.student), dtype=torch.float32).eval()
    assert mean_loss(encoded, student, list(range(ROWS))) == pytest.approx(unmerged, rel=1e-2)  # bfloat16 on disk
    base = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.bfloat16).state_dict()
    changed = {name for name, weight in student.state_dict().items() if not torch.equal(weight, base[name].float())}
    assert changed == {name for name in base if name.endswith("_proj.weight")}
    adapter = json.loads(encoded.store.read(f"{job.student}/adapter/adapter_config.json"))
    assert adapter["base_model_name_or_path"] == job.model
    assert encoded.store.exists(f"{job.student}/adapter/adapter_model.safetensors")


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "embed_tokens"]])
def test_tied_embeddings_take_no_adapter(tmp_path: Path, targets: list[str]) -> None:
    write_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    table = encoded_rows(tmp_path / "tied", tmp_path / "root", ROWS)
    with pytest.raises(RefusedError, match=r"^training\.lora\.targets: .* are one tensor"):
        _Rank(make_job(table, tmp_path / "tied", lora=LoraSection(rank=4, targets=targets)))


def test_a_checkpoint_under_way_is_written_where_training_diverges(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(make_job(encoded, tiny_dir, batch_size=2, checkpoint_every=2), checkpoints="diverging")
    write, step = Checkpoints._write, _Rank._step

    def slowly(checkpoints: Checkpoints, *what: Any) -> None:
        time.sleep(1)
        write(checkpoints, *what)

    def diverging(rank: _Rank, number: int, batch: list[int], rate: float) -> tuple[float, float]:
        if number == 2:
            raise DivergedError("as told")
        return step(rank, number, batch, rate)

    monkeypatch.setattr(Checkpoints, "_write", slowly)
    monkeypatch.setattr(_Rank, "_step", diverging)
    with pytest.raises(DivergedError):
        train_rank(job, lambda _: False)
    assert encoded.store.exists(f"{job.checkpoints}/step-00000002/progress.json")


def test_a_loss_spike_stops_before_it_changes_a_weight(encoded: Table, tiny_dir: Path) -> None:
    rank = _Rank(make_job(encoded, tiny_dir, epochs=10))
    rank.progress = replace(rank.progress, recent=(0.5,) * 8)  # as if it had learnt much; it is a random model
    before = {name: weight.detach().clone() for name, weight in rank.engine.module.named_parameters()}
    with pytest.raises(
        DivergedError, match=r"step 1 of 10: the loss 6\.\d+ is 5\.\d+ above .* in rows 0{30}"
    ) as caught:
        list(rank.steps())
    assert "\n" not in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in rank.engine.module.named_parameters())
    lenient = _Rank(make_job(encoded, tiny_dir, loss_spike=None))
    lenient.progress = rank.progress
    assert len(list(lenient.steps())) == 1


def test_states_on_disk_need_a_folder_and_libaio(
    encoded: Table, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    on_disk = {"zero_stage": 3, "offload": "nvme"}
    with pytest.raises(RefusedError, match=r"training\.offload_folder: .*Not a directory"):
        _Rank(make_job(encoded, tiny_dir, **on_disk, offload_folder=str(tmp_path / "file" / "below")))
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_, **__: False)
    with pytest.raises(RefusedError, match=r"training\.offload: nvme needs libaio's headers"):
        _Rank(make_job(encoded, tiny_dir, **on_disk, offload_folder=str(tmp_path)))


def test_rows_that_a_line_has_no_room_for_are_all_named_in_a_file(tiny_dir: Path, tmp_path: Path) -> None:
    many = encoded_rows(tiny_dir, tmp_path, 12)
    job = make_job(many, tiny_dir, batch_size=12, epochs=10)
    rank = _Rank(job)
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
        _Rank(make_job(encoded, tiny_dir, liger=True))
    monkeypatch.setattr("cgd_ray.training.kernels.find_spec", lambda _: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RefusedError, match=r"^training\.liger: install the package liger-kernel"):
        _Rank(make_job(encoded, tiny_dir, liger=True))


@pytest.mark.parametrize("fraction", [1e-6, 0.999])
def test_a_share_that_leaves_nothing_is_refused(encoded: Table, tiny_dir: Path, fraction: float) -> None:
    with pytest.raises(CgdError, match=r"training\.validation_fraction .* would be set aside"):
        _Rank(make_job(encoded, tiny_dir, validation_fraction=fraction))


def test_the_loop_needs_no_ray() -> None:
    code = "import sys, cgd_ray.training.worker; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
