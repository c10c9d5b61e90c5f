"""Times the optimiser steps of Hugging Face's Trainer, which TRL and LLaMA-Factory build on."""

import time
from typing import Any

from transformers import TrainerCallback


class Clock(TrainerCallback):
    """From the first step's start to the last one's end."""

    def __init__(self) -> None:
        self._started = self._ended = 0.0
        self.steps = 0

    @property
    def seconds(self) -> float:
        """Between the two."""
        return self._ended - self._started

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Called by the trainer."""
        self._started = self._started or time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer."""
        self._ended = time.perf_counter()
        self.steps += 1
