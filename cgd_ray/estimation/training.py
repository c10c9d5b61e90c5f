"""Estimate training before it is paid for: rows, steps, tokens, hours, memory by ZeRO stage and offload."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import structlog

from cgd_ray.config.training import TrainingSection
from cgd_ray.curation.run import sample_examples
from cgd_ray.methods import Example
from cgd_ray.models.resolve import local_model
from cgd_ray.prompts.chat_encoder import Encoded
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.training.dataset.encode import Encoding
from cgd_ray.training.dataset.packing import Ids, optimiser_steps
from cgd_ray.training.memory import Memory, ModelSizes, NoEstimateError, export_memory, memory, model_sizes

log = structlog.get_logger(__name__)
_MOST_ROWS = 1024
Layout = tuple[int, str]
"""ZeRO stage and offload."""
_LAYOUTS: tuple[Layout, ...] = (
    *((stage, "none") for stage in range(4)),
    *((stage, "cpu") for stage in range(1, 4)),
)


@dataclass(frozen=True)
class SampledRows:
    """A sample of a run's curated rows, encoded for this training."""

    complete: int
    """Generated rows in the sample."""
    encoded: list[Encoded]
    """Rows of the sample that curation and encoding keep."""

    @cached_property
    def lengths(self) -> Ids:
        """Tokens of each row, shape [encoded]."""
        return np.array([len(row.input_ids) for row in self.encoded], dtype=np.int64)

    @cached_property
    def supervised(self) -> Ids:
        """Supervised tokens of each row, shape [encoded]."""
        return self.lengths - np.array([row.target_start for row in self.encoded], dtype=np.int64)


@dataclass(frozen=True)
class TrainingEstimate:
    """Estimated cost of a training."""

    sampled: int
    """Rows that the other figures are estimated from."""
    rows: int
    steps: int
    total_tokens: float
    supervised_tokens: float
    flops: float | None
    """Computed from the model's architecture; None for a mixture of experts, or if no estimate is possible."""
    memory: dict[Layout, Memory]
    """Bytes of one worker without gradient checkpointing, by ZeRO stage and offload; layouts without an estimate are
    left out."""
    saved: dict[Layout, int]
    """Bytes of device memory that gradient checkpointing saves."""
    export: float | None
    """Bytes that the export needs on the first worker's host in addition to training; None if unknown."""


def encode_sample(encoding: Encoding, examples: Sequence[Example], complete: int) -> SampledRows:
    """Encode the curated rows among `complete` generated rows of a run."""
    found = [encoding.encode(example)[1] for example in encoding.prepared(examples)]
    return SampledRows(complete, [row for row in found if isinstance(row, Encoded)])


def estimate_training(
    training: TrainingSection, sample: SampledRows, expected_rows: int, sizes: Mapping[int, ModelSizes]
) -> TrainingEstimate:
    """Estimate the cost of training.

    Args:
        training: the recipe's training section.
        sample: sampled rows, at least one of them encoded.
        expected_rows: number of rows that the whole run will generate.
        sizes: the student's sizes by ZeRO stage; stages without an estimate are left out.
    """
    layouts = [(stage, offload) for stage, offload in _LAYOUTS if stage in sizes]
    flops = next((known.flops for known in sizes.values()), None)
    kept = training.model_copy(update={"gradient_checkpointing": False})
    rows = round(expected_rows * len(sample.encoded) / sample.complete * (1 - training.validation_fraction))
    passes = max(1, rows) * training.epochs
    return TrainingEstimate(
        sampled=len(sample.encoded),
        rows=rows,
        steps=optimiser_steps(max(1, rows), training.batch_size, training.epochs),
        total_tokens=passes * float(sample.lengths.mean()),
        supervised_tokens=passes * float(sample.supervised.mean()),
        flops=flops.of_rows(sample.lengths, sample.supervised) * passes / len(sample.encoded) if flops else None,
        memory={
            (stage, offload): memory(sizes[stage], kept.model_copy(update={"zero_stage": stage, "offload": offload}))
            for stage, offload in layouts
        },
        saved={(stage, offload): sizes[stage].saved for stage, offload in layouts},
        export=next((export_memory(known, training) for known in sizes.values()), None),
    )


def forecast_training(run: ResolvedRun) -> TrainingEstimate | None:
    """Estimate the training after all rows are generated; None if no row generated so far can be trained on.

    Raises:
        ConfigError: the student does not exist, or has no usable chat template.
    """
    recipe, joined = run.recipe, run.join()
    rows, complete = sample_examples(recipe, joined, _MOST_ROWS)
    encoding = Encoding(recipe.training, recipe.training_seed, run.templates, run.encoder)
    sample = encode_sample(encoding, [Example.from_row(row) for row in rows], complete)
    if not sample.encoded:
        return None
    student = recipe.student
    folder = local_model(student.model, student.revision, recipe.storage, weights=False)
    sizes = _sizes(folder, recipe.training, sample)
    return estimate_training(recipe.training, sample, run.prompts.train * joined.samples, sizes)


def _sizes(folder: Path, training: TrainingSection, sample: SampledRows) -> dict[int, ModelSizes]:
    """Return sizes by ZeRO stage; without ZeRO, bfloat16 training rounds the weights at each use."""
    sizes: dict[int, ModelSizes] = {}
    for stages in ((0,), (1, 2, 3)):
        section = training.model_copy(update={"zero_stage": stages[0]})
        try:
            sizes |= dict.fromkeys(stages, model_sizes(folder, section, sample.lengths, sample.supervised))
        except NoEstimateError as error:
            log.warning("no estimate of memory for this student", zero_stages=stages, error=str(error))
    return sizes
