"""The training loop of one rank. Imports no Ray: it runs the same under Ray Train and under torchrun.

Supported: DeepSpeed ZeRO 0-3 with fp32 master weights; AdamW, clipping, warm-up and decay; LoRA; validation; exact
resume to the step, in any layout. Batches are counted in rows and packed into passes inside the optimiser step. The
loss is the mean over the supervised tokens of the whole batch, independent of rank and pass. Not supported: tensor or
pipeline parallelism, other optimisers.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from cgd_ray.errors import StoppedError
from cgd_ray.models.resolve import local_model
from cgd_ray.storage.fingerprint import derived_seed
from cgd_ray.training.checkpoint.checkpoints import Checkpoints
from cgd_ray.training.checkpoint.export import export_student
from cgd_ray.training.dataset.encoded_rows import open_on_node
from cgd_ray.training.dataset.packing import PackedRows, batches, join, optimiser_steps, padded, padding, plan_passes
from cgd_ray.training.distributed import host_group, join_ranks, raise_on_all_ranks
from cgd_ray.training.flops import Yardstick, peak_memory
from cgd_ray.training.job import (
    DivergedError,
    GpuMemoryError,
    RankJob,
    RankOutcome,
    RefusedError,
    StepReport,
)
from cgd_ray.training.loop.activation_checkpointing import resolve_checkpointing
from cgd_ray.training.loop.attention import pass_multiple, require_rows_fit, resolve_attention
from cgd_ray.training.loop.deepspeed_engine import apply_step, start_engine
from cgd_ray.training.loop.kernels import compile_layers, lacking, require_same_loss
from cgd_ray.training.loop.loss import require_isolation, summed_loss
from cgd_ray.training.loop.lr_schedule import learning_rate
from cgd_ray.training.loop.tracking import Trackers
from cgd_ray.training.progress import Progress

Report = Callable[[StepReport], bool]
"""Receives each step; returns whether training is to stop."""


_FULL_GPU = re.compile(r"(?:CUDA|Cuda|HIP)[^.\n]*out of memory|\w+_STATUS_ALLOC_FAILED")  # PyTorch, NCCL, cuBLAS
_SHOWN = 8  # row keys in one line
_VALIDATED_AT_ONCE = 1024  # rows: packing time grows with their square


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass. A padding pass has weight 0: it only keeps the collectives aligned."""

    rows: PackedRows
    numbers: Sequence[int]
    weight: float


def train_rank(job: RankJob, report: Report, warned: Callable[[], bool] = lambda: False) -> RankOutcome:
    """Train from the last checkpoint to the last step, export the student from rank 0, and return the outcome.

    Args:
        job: the same on every rank.
        report: called after each step on all ranks. If it requests a stop on any rank, all ranks stop after the
            following step, with a checkpoint.
        warned: called after each step, with the same result on all ranks: whether a machine will soon be reclaimed. If
            so, a checkpoint is written now, and training continues.

    Raises:
        DivergedError: the loss or the gradient is not finite, or the loss jumps; names the step and the rows.
        StoppedError: `report` requested it.
        RefusedError: the model mixes packed rows, validation takes none or all of them, or a disk is full.
        GpuMemoryError: this rank's GPU is full; not raised on the others.
    """
    try:
        return _train_to_the_end(Trainer(job), report, warned)
    except RuntimeError as error:
        reason = _FULL_GPU.search(str(error))
        if reason is None:
            raise
        raise GpuMemoryError(
            f"a GPU has no room ({reason[0]}). Fix: lower training.micro_batch_tokens, or set "
            "training.gradient_checkpointing, a higher zero_stage or offload: cpu"
        ) from error


def _train_to_the_end(rank: "Trainer", report: Report, warned: Callable[[], bool]) -> RankOutcome:
    job = rank.job
    wants_best = job.training.export == "best"
    checkpoints = Checkpoints(job.encoded.store, job.checkpoints, job.training.keep_checkpoints, keep_best=wants_best)
    rank.progress = checkpoints.restore(rank.engine)
    resumed_from = rank.progress.step or None
    with contextlib.closing(_trackers(rank)) as trackers:
        try:
            _train(rank, checkpoints, trackers, report, warned)
        except RefusedError:
            checkpoints.wait()  # all ranks get here, and the process would end during the write
            raise
    checkpoints.wait()
    exported = rank.progress.best_step if wants_best else rank.progress.step
    if exported != rank.progress.step:
        checkpoints.take_weights(rank.engine, exported)
    rank.export()
    return RankOutcome(rank.progress, len(rank.trained), resumed_from, exported)


def _trackers(rank: "Trainer") -> Trackers:
    return Trackers(rank.job, rank.progress.step + 1, is_first=rank.number == 0, is_over=rank.is_over)


def _train(
    rank: "Trainer", checkpoints: Checkpoints, trackers: Trackers, report: Report, warned: Callable[[], bool]
) -> None:
    for step_report in rank.steps():
        if rank.is_due:
            rank.validate()
        if warned() or rank.is_due or rank.must_stop:
            checkpoints.save(rank.engine, rank.progress)
        seen = replace(step_report, progress=rank.progress)
        trackers.step(seen, flush=rank.is_due or rank.must_stop)
        rank.wants_stop = report(seen)
        if rank.must_stop and not rank.is_over:
            checkpoints.wait()
            raise StoppedError(f"training stopped after step {rank.progress.step} of {rank.total_steps}")


class Trainer:
    """One rank's engine, rows and position among the ranks."""

    def __init__(self, job: RankJob) -> None:
        self.device = join_ranks(job)
        self.number, self.world = dist.get_rank(), dist.get_world_size()
        self._patient = host_group()
        self.rows = open_on_node(job.encoded, self._patient)
        self.trained, self.validated = self.rows.apart(job.training.validation_fraction)
        if job.training.validation_fraction and not (len(self.trained) and len(self.validated)):
            raise RefusedError(
                f"training.validation_fraction {job.training.validation_fraction}: of {len(self.rows)} rows "
                f"{len(self.validated)} would be set aside and {len(self.trained)} trained on. Fix: change it"
            )
        self.total_steps = optimiser_steps(len(self.trained), job.training.batch_size, job.training.epochs)
        self.progress = Progress()
        self.source = local_model(job.model, job.revision, job.storage)
        self.wants_stop = False
        """Whether this rank was asked to stop."""
        self.must_stop = False
        """Whether any rank was asked to, before the last step; the same on all ranks."""
        raise_on_all_ranks(lacking(job.training, self.device), self._patient)
        training = resolve_checkpointing(job.training, self.source, self.rows, self.device, self._patient)
        self.job = job = replace(job, training=training)
        self.engine, self._fused = start_engine(job.training, self.source, self.device, job.seed)
        self.yardstick = Yardstick(self.engine.module, self.device)
        config = self.engine.module.config.get_text_config()
        require_rows_fit(config, int(self.rows.lengths.max(initial=0)))
        resolve_attention(self.engine, job.training, self.device)
        self._multiple = pass_multiple(self.engine)
        require_isolation(self.engine, config.vocab_size, self.device)
        if self._fused:
            require_same_loss(self.engine, config.vocab_size, self.device)
        if job.training.compile:
            # Compile last: the checks above try several kinds of attention.
            compile_layers(self.engine.module, job.training)

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self.progress.step == self.total_steps

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is due after the last step."""
        return self.progress.step % self.job.training.checkpoint_interval == 0 or self.is_over

    def steps(self) -> Iterator[StepReport]:
        """Run the remaining steps and yield a report of each."""
        training = self.job.training
        order = batches(
            len(self.trained), training.batch_size, training.epochs, self.job.seed, first_step=self.progress.step
        )
        for places in order:
            batch, before = self.trained[places], self.progress
            started = time.perf_counter()
            rate = learning_rate(training, before.step, self.total_steps)
            loss, norm = self._step(before.step, batch.tolist(), rate)
            seconds = time.perf_counter() - started
            lengths, supervised = self.rows.lengths[batch], self.rows.supervised[batch]
            tokens = (int(supervised.sum()), int(lengths.sum()))
            self.progress = before.stepped(loss, seconds, *tokens)
            mfu = self.yardstick.mfu(lengths, supervised, seconds * self.world)
            memory = peak_memory(self.device)
            yield StepReport(self.progress, self.total_steps, rate, norm, seconds, *tokens, mfu, memory)

    @torch.no_grad()
    def validate(self) -> None:
        """Measure the loss on all validation rows, without dropout. All ranks call it together."""
        if not len(self.validated):
            return
        summed = torch.zeros((), device=self.device)
        self.engine.eval()
        for start in range(0, len(self.validated), _VALIDATED_AT_ONCE):
            for one in self.passes_of(self.validated[start : start + _VALIDATED_AT_ONCE].tolist()):
                summed += one.weight * summed_loss(self.engine, one.rows, self.device, fused=self._fused)
        self.engine.train()
        dist.all_reduce(summed)
        loss = summed.item() / int(self.rows.supervised[self.validated].sum())
        if not math.isfinite(loss):
            raise DivergedError(
                f"training stopped at step {self.progress.step}: the validation loss is not finite. Fix: lower "
                "training.learning_rate, which begins anew, or look at the rows (`cgd inspect`)"
            )
        self.progress = self.progress.validated(loss)

    def _step(self, step: int, batch: list[int], rate: float) -> tuple[float, float]:
        """Run one optimiser step on all ranks; return the mean loss per supervised token and the gradient norm."""
        # Seeded by step, so that dropout (if the model has it) resumes without saved generator state.
        torch.manual_seed(derived_seed(self.job.seed, "step", step, self.number))
        tokens = int(self.rows.supervised[batch].sum())
        passes = self.passes_of(batch)
        stops = torch.tensor(float(self.wants_stop), device=self.device)
        losses = []
        for place, one in enumerate(passes):
            self.engine.set_gradient_accumulation_boundary(place == len(passes) - 1)
            loss = summed_loss(self.engine, one.rows, self.device, fused=self._fused)
            # DeepSpeed averages gradients over the ranks; the loss is averaged over the whole batch's tokens.
            self.engine.backward(loss * (one.weight * self.world / tokens), scale_wrt_gas=False)
            losses.append(loss.detach() * one.weight)
        each = torch.stack(losses)
        both = torch.stack([each.sum(), stops])
        dist.all_reduce(both)
        summed, self.must_stop = both[0], bool(both[1])
        broken = [one.numbers for one, loss in zip(passes, each.tolist(), strict=True) if not math.isfinite(loss)]
        self._require_finite(step, summed.item(), [number for numbers in broken for number in numbers])
        mean = summed.item() / tokens
        self._require_no_spike(step, mean, batch)
        norm = apply_step(self.engine, rate)
        self._require_finite(step, norm, batch)
        return mean, norm

    def passes_of(self, batch: list[int]) -> list[_Pass]:
        """Return this rank's passes over the rows with these numbers."""
        lengths = [int(self.rows.lengths[number]) for number in batch]
        plan = plan_passes(lengths, self.world, self.job.training.micro_batch_tokens)[self.number]
        passes = []
        for members in plan:
            numbers = [batch[index] for index in members]
            rows = join([self.rows.row(number) for number in numbers]) if numbers else padding()
            rows = padded(rows, self._multiple) if self._multiple > 1 else rows
            passes.append(_Pass(rows, numbers, weight=1.0 if numbers else 0.0))
        return passes

    def _require_finite(self, step: int, value: float, suspects: Sequence[int]) -> None:
        """Stop all ranks if `value`, which is the same on all, is not finite; `suspects` are this rank's rows."""
        if not math.isfinite(value):
            self._diverge(
                step, "loss or gradient is not finite", "lower training.learning_rate (which begins anew)", suspects
            )

    def _require_no_spike(self, step: int, loss: float, batch: Sequence[int]) -> None:
        """Stop on a loss spike before the step changes a weight: the last checkpoint is still good."""
        most, jump = self.job.training.loss_spike, self.progress.jump(loss)
        if most is not None and jump > most:
            self._diverge(
                step,
                f"the loss {loss:.3g} is {jump:.3g} above the last steps'",
                f"raise training.loss_spike ({most:g}; null lets all pass), lower training.learning_rate (begins anew)",
                batch,
            )

    def _diverge(self, step: int, why: str, mend: str, suspects: Sequence[int]) -> NoReturn:
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, [self.rows.key(number) for number in suspects])
        keys = sorted({key for keys in gathered for key in keys})
        shown = ", ".join(keys[:_SHOWN])
        if len(keys) > _SHOWN:
            name = f"{self.job.checkpoints}/diverged-step-{step + 1}.txt"
            if self.number == 0:
                self.job.encoded.store.write(name, "".join(f"{key}\n" for key in keys).encode())
            shown += f" and {len(keys) - _SHOWN} more (all in {self.job.encoded.store.url(name)})"
        raise DivergedError(
            f"training stopped at step {step + 1} of {self.total_steps}: {why} in rows {shown}. "
            f"Fix: {mend}, or look at these rows (`cgd inspect`)"
        )

    def export(self) -> None:
        """Export the student to the store from rank 0; the caller writes its manifest."""
        export_student(self.engine, self.job, self.source)
        dist.barrier(self._patient)
