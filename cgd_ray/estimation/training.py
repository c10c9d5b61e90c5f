"""What training and evaluation will take, told from the rows that a run has generated so far."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import structlog

from cgd_ray.config.recipe import Recipe
from cgd_ray.config.training import TrainingSection
from cgd_ray.curation.run import sample_examples
from cgd_ray.data.prepare import PreparedPrompts
from cgd_ray.estimation.generation import Estimate, Spread
from cgd_ray.estimation.training_cost import SampledRows, TrainingEstimate, encode_sample, estimate_training
from cgd_ray.evaluation.run import unanswered
from cgd_ray.generation.run import join_of
from cgd_ray.methods import Example
from cgd_ray.models.resolve import local_model
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.stages.definitions import build_stages, student_identity
from cgd_ray.storage.filesystem import Store
from cgd_ray.training.checkpoint.model_card import training_seed
from cgd_ray.training.dataset.chat_encoder import student_encoder
from cgd_ray.training.dataset.encode import Encoding
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


@dataclass(frozen=True)
class EvaluationEstimate:
    """What the answers to the held-out prompts will take."""

    questions: int
    answers: int
    """Of base and trained student together, those that are there aside."""
    prompt_tokens: Spread
    completion_tokens: Spread
    """Told from drafts, which ask the same student the same way; a trained one may say more or less."""
    hours: Spread | None
    """Of the student's pool; None where the probe made no drafts."""
    gpu_hours: Spread | None


def forecast_evaluation(
    recipe: Recipe, store: Store, prompts: PreparedPrompts, questions: pa.Table, estimate: Estimate | None
) -> EvaluationEstimate | None:
    """What evaluation takes; None where there is no draft to tell it from.

    Args:
        recipe: of the run.
        store: of its root.
        prompts: its prompts.
        questions: the held-out ones that are asked.
        estimate: what a probe says of generation, where anything was left to generate.
    """
    joined = join_of(recipe, prompts.table, build_stages(recipe, store))
    drafts = (row.results["draft"] for row in joined.rows_near("draft"))
    made = list(islice((draft for draft in drafts if draft and draft["completion_tokens"] is not None), _MOST_ROWS))
    if not made:
        return None
    trained = len(questions) if recipe.training.enabled else 0
    answers = unanswered(recipe, store, questions, student_identity(recipe)) + trained
    prompt = Spread.of([draft["prompt_tokens"] for draft in made], answers)
    most = recipe.evaluation.max_tokens
    completion = Spread.of([min(most, draft["completion_tokens"]) for draft in made], answers)
    measured = estimate.stages.get("draft") if estimate else None
    hours = gpu_hours = None
    if measured and measured.completion_tokens.value:
        share = completion.value / measured.completion_tokens.value
        hours, gpu_hours = measured.hours.times(share), measured.gpu_hours.times(share)
    return EvaluationEstimate(len(questions), answers, prompt, completion, hours, gpu_hours)


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
