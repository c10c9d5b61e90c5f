"""A patch of vLLM through its own door: a logits processor that ends the engine's process for one prompt."""

import os

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.interface import BatchUpdate

TOKENS_VARIABLE = "CGD_TEST_POISON_TOKENS"
"""Environment variable with the token ids, separated by commas, that kill the process when they follow each other."""


class Poison(LogitsProcessor):
    def __init__(self, *_what_it_runs_on: object) -> None:
        self._poison = [int(token) for token in os.environ[TOKENS_VARIABLE].split(",")]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        for _, _, prompt, _ in batch_update.added if batch_update else ():
            if self._is_in(prompt or []):
                os._exit(1)

    def _is_in(self, prompt: list[int]) -> bool:
        size = len(self._poison)
        return any(prompt[start : start + size] == self._poison for start in range(len(prompt) - size + 1))
