import pytest

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.loop.lr_schedule import learning_rate


def rates(steps: int, **settings: object) -> list[float]:
    training = TrainingSection.model_validate({"learning_rate": 1.0, **settings})
    return [learning_rate(training, step, steps) for step in range(steps)]


def test_warm_up_rises_to_the_full_rate() -> None:
    assert rates(20, lr_scheduler="constant", warmup_fraction=0.2) == [0.25, 0.5, 0.75, *[1.0] * 17]


def test_linear_falls_to_zero_just_behind_the_last_step() -> None:
    assert rates(4, lr_scheduler="linear", warmup_fraction=0) == [1.0, 0.75, 0.5, 0.25]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    cosine = rates(10, lr_scheduler="cosine", warmup_fraction=0)
    assert cosine[5] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_single_step_learns(schedule: str) -> None:
    assert rates(1, lr_scheduler=schedule, warmup_fraction=1.0) == [1.0]
