"""What training will take, told from the rows that a run has generated so far."""

from pathlib import Path

import structlog

from cgd_ray.config.recipe import Recipe
from cgd_ray.config.training import TrainingSection
from cgd_ray.curation.run import sample_examples
from cgd_ray.data.prepare import PreparedPrompts
from cgd_ray.generation.run import join_of
from cgd_ray.generation.stages import build_stages
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.models import local_model
from cgd_ray.training.card import training_seed
from cgd_ray.training.encode import student_encoder
from cgd_ray.training.encode_table import Encoding
from cgd_ray.training.estimate import SampledRows, TrainingEstimate, encode_sample, estimate_training
from cgd_ray.training.formats import Example
from cgd_ray.training.memory import ModelSizes, NoEstimateError, model_sizes

log = structlog.get_logger(__name__)
_MOST_ROWS = 1024


def forecast_training(recipe: Recipe, store: Store, prompts: PreparedPrompts) -> TrainingEstimate | None:
    """What training takes once all rows are generated; None where none of those that are there can be trained on.

    Raises:
        ConfigError: the student is not there or has no usable chat template.
    """
    joined = join_of(recipe, prompts.table, build_stages(recipe, store))
    rows, complete = sample_examples(recipe, joined, _MOST_ROWS)
    encoding = Encoding(
        recipe.training, training_seed(recipe), load_prompts(recipe.generation.prompts), student_encoder(recipe)
    )
    sample = encode_sample(encoding, [Example.from_row(row) for row in rows], complete)
    if not sample.encoded:
        return None
    student = recipe.student
    folder = local_model(student.model, student.revision, recipe.storage, weights=False)
    sizes = _sizes(folder, recipe.training, sample)
    return estimate_training(recipe.training, sample, prompts.train * joined.samples, sizes)


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
