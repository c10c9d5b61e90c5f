from collections import Counter

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.dataset.mix import method_of_row
from tests.unit.training.tiny import example


def test_mix_draws_by_key_alone_and_in_proportion_to_the_weights() -> None:
    training = TrainingSection(method="mix", mix={"cgd": 3.0, "refsft": 1.0})
    rows = [example(number) for number in range(2000)]
    drawn = {row.prompt_id: method_of_row(row, training, seed=1) for row in rows}
    again = TrainingSection(method="mix", mix={"refsft": 1.0, "cgd": 3.0})
    assert {row.prompt_id: method_of_row(row, again, seed=1) for row in reversed(rows)} == drawn
    assert 1420 < Counter(drawn.values())["cgd"] < 1580
    assert drawn != {row.prompt_id: method_of_row(row, training, seed=2) for row in rows}


def test_mix_draws_samples_of_one_prompt_apart() -> None:
    training = TrainingSection(method="mix", mix={"cgd": 1.0, "refsft": 1.0})
    assert len({method_of_row(example(5, sample=sample), training, 0) for sample in range(20)}) == 2
