"""Choose the method of each row if `training.method` is `mix`."""

from collections.abc import Mapping

from cgd_ray.config.training import TrainingSection
from cgd_ray.methods import Example, MethodName
from cgd_ray.storage.fingerprint import derived_seed


def method_of_row(example: Example, training: TrainingSection, seed: int) -> MethodName:
    """Return the run's method, or for `mix` one drawn by seed, key and weights.

    Of the rows, only the row's own key affects the draw, so adding or reordering rows changes no other row's method.
    """
    if training.method != "mix":
        return training.method
    return _drawn(example, training.mix, seed)


def _drawn(example: Example, weights: Mapping[MethodName, float], seed: int) -> MethodName:
    names = sorted(weights)
    draw = derived_seed(seed, "mix", example.prompt_id, example.sample) / 2**31 * sum(weights.values())
    for name in names[:-1]:
        draw -= weights[name]
        if draw < 0:
            return name
    return names[-1]
