"""What the answers to the held-out prompts will take, told from drafts."""

from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from cgd_ray.estimation.generation import Estimate
from cgd_ray.estimation.interval import Interval
from cgd_ray.evaluation.run import unanswered
from cgd_ray.stages.resolved import ResolvedRun

_MOST_ROWS = 1024


@dataclass(frozen=True)
class EvaluationEstimate:
    """What the answers to the held-out prompts will take."""

    questions: int
    answers: int
    """Of base and trained student together, those that are there aside."""
    prompt_tokens: Interval
    completion_tokens: Interval
    """Told from drafts, which ask the same student the same way; a trained one may say more or less."""
    hours: Interval | None
    """Of the student's pool; None where the probe made no drafts."""
    gpu_hours: Interval | None


def forecast_evaluation(run: ResolvedRun, questions: pa.Table, estimate: Estimate | None) -> EvaluationEstimate | None:
    """What evaluation takes; None where there is no draft to tell it from.

    Args:
        run: of the recipe.
        questions: the held-out ones that are asked.
        estimate: what a probe says of generation, where anything was left to generate.
    """
    recipe = run.recipe
    drafts = (row.results["draft"] for row in run.join().rows_near("draft"))
    made = list(islice((draft for draft in drafts if draft and draft["completion_tokens"] is not None), _MOST_ROWS))
    if not made:
        return None
    trained = len(questions) if recipe.training.enabled else 0
    answers = unanswered(run, questions, run.student_identity) + trained
    prompt = Interval.of([draft["prompt_tokens"] for draft in made], answers)
    most = recipe.evaluation.max_tokens
    completion = Interval.of([min(most, draft["completion_tokens"]) for draft in made], answers)
    measured = estimate.stages.get("draft") if estimate else None
    hours = gpu_hours = None
    if measured and measured.completion_tokens.value:
        share = completion.value / measured.completion_tokens.value
        hours, gpu_hours = measured.hours.times(share), measured.gpu_hours.times(share)
    return EvaluationEstimate(len(questions), answers, prompt, completion, hours, gpu_hours)
