"""Estimate the cost of the answers to the held-out prompts from the lengths of drafts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from cgd_ray.estimation.generation import Estimate
from cgd_ray.estimation.interval import Interval
from cgd_ray.evaluation.questions import QuestionSet
from cgd_ray.evaluation.run import unanswered
from cgd_ray.stages.resolved import ResolvedRun

_MOST_ROWS = 1024


@dataclass(frozen=True)
class EvaluationEstimate:
    """Estimated cost of the answers to the held-out prompts."""

    questions: int
    answers: int
    """Answers of base and trained student together, without the base student's existing ones."""
    prompt_tokens: Interval
    completion_tokens: Interval
    """Estimated from drafts: same student, same prompts; a trained student may write longer or shorter answers."""
    hours: Interval | None
    """Hours of the student's pool; None if the probe generated no drafts."""
    gpu_hours: Interval | None


def forecast_evaluation(
    run: ResolvedRun, sets: Sequence[QuestionSet], estimate: Estimate | None
) -> EvaluationEstimate | None:
    """Estimate the cost of evaluation; None if there is no draft to estimate it from.

    Args:
        run: the run to estimate.
        sets: the questions of the evaluation.
        estimate: the probe's estimate of generation; None if nothing was left to generate.
    """
    recipe = run.recipe
    drafts = (row.results["draft"] for row in run.join().rows_near("draft"))
    made = list(islice((draft for draft in drafts if draft and draft["completion_tokens"] is not None), _MOST_ROWS))
    if not made:
        return None
    asked = sum(len(one.rows) * one.samples for one in sets)
    answers = unanswered(run, sets, run.student_identity) + (asked if recipe.training.enabled else 0)
    prompt = Interval.of([draft["prompt_tokens"] for draft in made], answers)
    most = recipe.evaluation.max_tokens
    completion = Interval.of([min(most, draft["completion_tokens"]) for draft in made], answers)
    measured = estimate.stages.get("draft") if estimate else None
    hours = gpu_hours = None
    if measured and measured.completion_tokens.value:
        share = completion.value / measured.completion_tokens.value
        hours, gpu_hours = measured.hours.times(share), measured.gpu_hours.times(share)
    questions = sum(len(one.rows) for one in sets)
    return EvaluationEstimate(questions, answers, prompt, completion, hours, gpu_hours)
