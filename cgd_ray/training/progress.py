"""How far a training is."""

from dataclasses import dataclass


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
