"""Convert a completion to its row in the stage's table and its metrics."""

import re
from dataclasses import replace

from cgd_ray.execution.metrics import StageMetrics
from cgd_ray.inference.base import Completion, CompletionError, PoisonError, PromptTooLongError
from cgd_ray.redaction import one_line
from cgd_ray.stages.stage import Row, Stage
from cgd_ray.storage.fingerprint import text_digest

# Decoration before and after is of the same line: a search over lines would take quadratic time.
_VERDICT = re.compile(r"^[^\w\n]*verdict\W+(right|wrong)[^\w\n]*$", re.IGNORECASE | re.MULTILINE)


def parse_verdict(text: str) -> str | None:
    """Return the verdict of the last "Verdict: right" or "Verdict: wrong" line of a critique, ignoring decoration."""
    found = _VERDICT.findall(text)
    return found[-1].lower() if found else None


def result_row(stage: Stage, row: Row, made: Completion | CompletionError) -> Row:
    """Return a row of the stage's table (RESULTS schema)."""
    completion = replace(made, text=_valid(made.text)) if isinstance(made, Completion) else None
    error = None if isinstance(made, Completion) else one_line(_valid(str(made)), 1000)
    return {
        "prompt_id": row["prompt_id"],
        "sample": row["sample"],
        "parent": stage.parent_of(row),
        "status": _status(made),
        "digest": text_digest(completion.text) if completion else None,
        "text": completion.text if completion else None,
        "finish_reason": completion.finish_reason if completion else None,
        "verdict": parse_verdict(completion.text) if completion and stage.has_verdict else None,
        "error": error,
        "prompt_tokens": made.prompt_tokens,
        "completion_tokens": made.completion_tokens,
        "model": stage.model,
        "attempt": stage.attempt,
    }


def _valid(text: str) -> str:
    """Replace unpaired surrogates by U+FFFD: JSON may hold what UTF-8 cannot, such as an emoji cut in two."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _status(made: Completion | CompletionError) -> str:
    match made:
        case Completion():
            return "truncated" if made.truncated else "ok"
        case PromptTooLongError():
            return "over-long"
        case PoisonError():
            return "quarantined"
        case CompletionError():
            return "failed"


def metrics_of(result: Row, cached: int | None, started: float, seconds: float) -> StageMetrics:
    """Return the metrics of one completion that began at `started` (seconds since the epoch) and took `seconds`."""
    status = result["status"]
    return StageMetrics(
        rows=1,
        failed=int(status == "failed"),
        truncated=int(status == "truncated"),
        over_long=int(status == "over-long"),
        quarantined=int(status == "quarantined"),
        prompt_tokens=result["prompt_tokens"] or 0,
        completion_tokens=result["completion_tokens"] or 0,
        cached_tokens=cached or 0,
        busy_seconds=seconds,
        started=started,
        ended=started + seconds,
        error=result["error"],
    )
