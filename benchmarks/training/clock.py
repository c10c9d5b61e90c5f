"""Time the optimiser steps of Hugging Face's Trainer, which TRL and LLaMA-Factory build on."""

import time
from typing import Any

from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Measures from the second epoch's start to the end of its last step."""

    def __init__(self) -> None:
        self._started = self._ended = 0.0
        self.steps = 0
        """Steps of the last epoch."""

    @property
    def seconds(self) -> float:
        """Seconds from the last epoch's start to the end of its last step."""
        return self._ended - self._started

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Restart the clock; the trainer calls this."""
        self._started = time.perf_counter()
        self.steps = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count a step; the trainer calls this."""
        self._ended = time.perf_counter()
        self.steps += 1
