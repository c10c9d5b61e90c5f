"""What stages did, counted where they ran."""

import math
from dataclasses import dataclass

ENOUGH_ROWS = 20
"""Of fewer rows a share says little."""

_SURE = 3.7  # standard deviations: one chance in 10,000, since a run is looked at thousands of times


@dataclass
class StageMetrics:
    """What one stage did in one invocation, or since it was last asked."""

    admitted: int = 0
    """Rows that the stage was begun with, finished or not; one whose engine died counts again."""
    rows: int = 0
    """Those that are finished, with or without a text."""
    failed: int = 0
    truncated: int = 0
    over_long: int = 0
    quarantined: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    busy_seconds: float = 0.0
    """Of all rows together."""
    started: float = math.inf
    ended: float = 0.0
    """Seconds since the epoch, by the clocks of the engines' nodes."""
    error: str | None = None
    """The last one."""

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return max(0.0, self.ended - self.started)

    @property
    def lost(self) -> int:
        """Rows that the engine failed on. An over-long prompt says nothing of the engine."""
        return self.failed + self.quarantined

    def surely_above(self, count: int, share: float) -> bool:
        """Whether more than this share of the stage's rows will be among those that so many are among by now.

        Among rows that were begun, not finished: refusals come at once and completions late, so nothing but refusals
        is finished at first, and the slowest are missing to the end.

        Source: the lower end of E. B. Wilson's score interval, JASA 22 (1927).
        """
        rows = max(self.admitted, self.rows)
        if rows < ENOUGH_ROWS:
            return False
        found, square = count / rows, _SURE * _SURE / rows
        low = (found + square / 2 - math.sqrt(square * (found * (1 - found) + square / 4))) / (1 + square)
        return low > share

    def add(self, other: "StageMetrics") -> None:
        """Take another tally of the same stage in."""
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
"""By stage."""


def add_metrics(whole: Metrics, more: Metrics) -> None:
    """Take tallies into those of the same stages."""
    for stage, counted in more.items():
        whole.setdefault(stage, StageMetrics()).add(counted)
