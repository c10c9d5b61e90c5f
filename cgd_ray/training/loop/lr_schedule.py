"""The learning rate of each optimiser step: a pure function, so that a resumed run needs no scheduler state."""

import math

from cgd_ray.config.training import TrainingSection


def learning_rate(training: TrainingSection, step: int, steps: int) -> float:
    """Return the rate of step number `step` (from 0) out of `steps`.

    The rate rises linearly over the warm-up, whose last step has the full rate. It then falls so that a step after the
    last one would have 0 (`constant`: stays).
    """
    warmup = round(training.warmup_fraction * steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.lr_scheduler == "constant":
        return training.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    share = 0.5 * (1 + math.cos(math.pi * done)) if training.lr_scheduler == "cosine" else 1 - done
    return training.learning_rate * share
