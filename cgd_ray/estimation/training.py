"""What training will take, before it is paid for: rows, steps, tokens, hours, memory by ZeRO stage and offload."""

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
    """Curated rows of a run, as this training would see them."""

    complete: int
    """Rows that were generated."""
    encoded: list[Encoded]
    """Those of them that curation and encoding keep."""

    @cached_property
    def lengths(self) -> Ids:
        """[encoded] tokens of each."""
        return np.array([len(row.input_ids) for row in self.encoded], dtype=np.int64)

    @cached_property
    def supervised(self) -> Ids:
        """[encoded] supervised tokens of each."""
        return self.lengths - np.array([row.target_start for row in self.encoded], dtype=np.int64)


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training takes."""

    sampled: int
    """Rows that all else is told from."""
    rows: int
    steps: int
    total_tokens: float
    supervised_tokens: float
    flops: float | None
    """By the mathematics of the model; None for a mixture of experts, or where nothing can be told."""
    memory: dict[Layout, Memory]
    """Bytes of one worker, by ZeRO stage and offload, without gradient checkpointing; without those that cannot be
    told."""
    saved: dict[Layout, int]
    """Bytes of the device that gradient checkpointing leaves free."""
    export: float | None
    """Bytes that the export takes on the first worker's host beside what training holds; None where not known."""


def encode_sample(encoding: Encoding, examples: Sequence[Example], complete: int) -> SampledRows:
    """Rows of a run that were curated, of so many that were looked at."""
    found = [encoding.encode(example)[1] for example in encoding.prepared(examples)]
    return SampledRows(complete, [row for row in found if isinstance(row, Encoded)])


def estimate_training(
    training: TrainingSection, sample: SampledRows, expected_rows: int, sizes: Mapping[int, ModelSizes]
) -> TrainingEstimate:
    """What training takes.

    Args:
        training: the recipe's.
        sample: of the rows, not empty.
        expected_rows: that the whole run will generate.
        sizes: of the student, by ZeRO stage; without those that cannot be told.
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
    """What training takes once all rows are generated; None where none of those that are there can be trained on.

    Raises:
        ConfigError: the student is not there or has no usable chat template.
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
    """By ZeRO stage: without it, weights in bfloat16 are rounded as they are used."""
    sizes: dict[int, ModelSizes] = {}
    for stages in ((0,), (1, 2, 3)):
        section = training.model_copy(update={"zero_stage": stages[0]})
        try:
            sizes |= dict.fromkeys(stages, model_sizes(folder, section, sample.lengths, sample.supervised))
        except NoEstimateError as error:
            log.warning("no estimate of memory for this student", zero_stages=stages, error=str(error))
    return sizes
