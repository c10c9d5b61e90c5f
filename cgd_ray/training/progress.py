"""How far a training is."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """How far training is, over all interruptions."""

    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    supervised_tokens: int = 0
    total_tokens: int = 0
    loss: float = float("nan")
    """Mean loss per supervised token of the last step."""
    validation_loss: float | None = None
    """The same over all validation rows, at the last checkpoint that measured it."""
    best_step: int = 0
    """The step with the lowest validation loss; 0: none was measured."""
    best_loss: float = float("inf")

    def validated(self, loss: float) -> "Progress":
        """With a validation loss that was measured now."""
        progress = replace(self, validation_loss=loss)
        return replace(progress, best_step=self.step, best_loss=loss) if loss < self.best_loss else progress
