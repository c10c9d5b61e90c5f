"""What stages did, counted where they ran."""

import math
from dataclasses import dataclass


@dataclass
class StageTally:
    """What one stage did in one invocation, or since it was last asked."""

    rows: int = 0
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
        """Rows without a text."""
        return self.failed + self.over_long + self.quarantined

    def add(self, other: "StageTally") -> None:
        """Take another tally of the same stage in."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.started = min(self.started, other.started)
        self.ended = max(self.ended, other.ended)
        self.error = other.error or self.error


_COUNTS = (
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

Tallies = dict[str, StageTally]
"""By stage."""


def add_tallies(whole: Tallies, more: Tallies) -> None:
    """Take tallies into those of the same stages."""
    for stage, tally in more.items():
        whole.setdefault(stage, StageTally()).add(tally)
