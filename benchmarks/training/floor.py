"""Time of an epoch's matrix products alone, at the rate that large products reach on these cores."""

import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.training.work import Outcome, arguments
from cgd_ray.training.flops import Flops

_SIZE, _REPEATS = 2048, 20


def main() -> None:
    """Measure the rate of a large product, and divide the epoch's FLOPs by it."""
    task, made = arguments()
    torch.set_num_threads(task.threads)
    flops = Flops.of(AutoModelForCausalLM.from_pretrained(task.model))
    if flops is None:
        raise SystemExit("a mixture of experts has no simple floor")
    lengths = np.array([len(ids) for ids, _ in task.rows])
    supervised = np.array([len(ids) - start for ids, start in task.rows])
    rate = _rate(torch.bfloat16 if task.precision == "bf16" else torch.float32)
    Outcome(flops.of_rows(lengths, supervised) / rate, 0).write(made)


def _rate(dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of `_REPEATS` products."""
    one, other = torch.randn(_SIZE, _SIZE).to(dtype), torch.randn(_SIZE, _SIZE).to(dtype)
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - started)
    return 2 * _SIZE**3 / best


if __name__ == "__main__":
    main()
