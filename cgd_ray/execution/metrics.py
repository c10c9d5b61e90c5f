"""Metrics of stages, counted where the stages run."""

import math
from dataclasses import dataclass

ENOUGH_ROWS = 20
"""With fewer rows, a share is not meaningful."""

_SURE = 3.7  # standard deviations: one chance in 10,000, since a run is checked thousands of times


@dataclass
class StageMetrics:
    """Metrics of one stage in one invocation, or since the last report."""

    admitted: int = 0
    """Rows that the stage began, finished or not; a row whose engine died counts again."""
    rows: int = 0
    """Finished rows, with or without a text."""
    failed: int = 0
    truncated: int = 0
    over_long: int = 0
    quarantined: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    busy_seconds: float = 0.0
    """Sum over all rows."""
    started: float = math.inf
    ended: float = 0.0
    """Seconds since the epoch, by the clocks of the engines' nodes."""
    error: str | None = None
    """The last error."""

    @property
    def seconds(self) -> float:
        """Seconds from the first start to the last end."""
        return max(0.0, self.ended - self.started)

    @property
    def lost(self) -> int:
        """Rows that the engine failed on. Over-long prompts are excluded: they do not indicate an engine fault."""
        return self.failed + self.quarantined

    def surely_above(self, count: int, share: float) -> bool:
        """Whether `count` rows so far show that more than this share of all the stage's rows will be affected.

        Relates `count` to rows begun, not finished: refusals come at once and completions late. So at first only
        refusals are finished, and the slowest rows are missing until the end.

        Source: the lower end of E. B. Wilson's score interval, JASA 22 (1927).
        """
        rows = max(self.admitted, self.rows)
        if rows < ENOUGH_ROWS:
            return False
        found, square = count / rows, _SURE * _SURE / rows
        low = (found + square / 2 - math.sqrt(square * (found * (1 - found) + square / 4))) / (1 + square)
        return low > share

    def add(self, other: "StageMetrics") -> None:
        """Add other metrics of the same stage."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.started = min(self.started, other.started)
        self.ended = max(self.ended, other.ended)
        self.error = other.error or self.error


_COUNTS = (
    "admitted",
    "rows",
    "failed",
    "truncated",
    "over_long",
    "quarantined",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "busy_seconds",
)

Metrics = dict[str, StageMetrics]
"""Metrics by stage."""


def add_metrics(whole: Metrics, more: Metrics) -> None:
    """Add metrics to those of the same stages."""
    for stage, counted in more.items():
        whole.setdefault(stage, StageMetrics()).add(counted)
