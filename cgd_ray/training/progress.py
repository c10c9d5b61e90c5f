"""Training progress."""

import statistics
from dataclasses import dataclass, replace

from cgd_ray.storage.runs import JsonDict

_RECENT = 32
_FEWEST = 8


@dataclass(frozen=True)
class Progress:
    """Progress of one training across all interruptions."""

    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    supervised_tokens: int = 0
    total_tokens: int = 0
    loss: float = float("nan")
    """Mean loss per supervised token of the last step."""
    validation_loss: float | None = None
    """Mean loss per supervised token of all validation rows, as of the last checkpoint that measured it."""
    best_step: int = 0
    """The step with the lowest validation loss; 0: none was measured."""
    best_loss: float = float("inf")
    recent: tuple[float, ...] = ()
    """Losses of the last steps."""

    @staticmethod
    def from_json(content: JsonDict) -> "Progress":
        """Restore progress from the output of `asdict`."""
        return Progress(**content | {"recent": tuple(content.get("recent", ()))})

    def stepped(self, loss: float, seconds: float, supervised: int, total: int) -> "Progress":
        """Return the progress after one more step."""
        return replace(
            self,
            step=self.step + 1,
            seconds=self.seconds + seconds,
            supervised_tokens=self.supervised_tokens + supervised,
            total_tokens=self.total_tokens + total,
            loss=loss,
            recent=(*self.recent, loss)[-_RECENT:],
        )

    def jump(self, loss: float) -> float:
        """Return a loss minus the median of `recent`; 0 if `recent` has fewer than `_FEWEST` losses."""
        return loss - statistics.median(self.recent) if len(self.recent) >= _FEWEST else 0.0

    def validated(self, loss: float) -> "Progress":
        """Return the progress with the validation loss of the current step."""
        progress = replace(self, validation_loss=loss)
        return replace(progress, best_step=self.step, best_loss=loss) if loss < self.best_loss else progress
