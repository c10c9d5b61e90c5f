from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cgd_ray.methods import Example
from cgd_ray.training.dataset.shuffled_critiques import with_others
from tests.unit.training.tiny import example

VERDICTS = st.sampled_from(["right", "wrong", None])


def rows(prompts: list[tuple[str | None, ...]]) -> list[Example]:
    """For each prompt its samples' verdicts; every critique is told from the others."""
    return [
        example(number, sample=sample, verdict=verdict, critique=f"critique {number}/{sample}")
        for number, verdicts in enumerate(prompts)
        for sample, verdict in enumerate(verdicts)
    ]


@given(st.lists(st.lists(VERDICTS, min_size=1, max_size=3).map(tuple), max_size=12), st.integers(0, 9))
def test_others_are_of_the_same_verdict_and_another_prompt_and_each_is_shown_once(
    prompts: list[tuple[str | None, ...]], seed: int
) -> None:
    before = rows(prompts)
    owners = {row.critique: row for row in before}
    after = with_others(before, seed)
    assert [row.critique for row in after] == [row.critique for row in before]
    shown = [row.other_critique for row in after if row.other_critique is not None]
    assert len(shown) == len(set(shown))
    for row in after:
        if row.other_critique is not None:
            assert owners[row.other_critique].verdict == row.verdict
            assert owners[row.other_critique].prompt_id != row.prompt_id


@given(st.lists(VERDICTS, max_size=12))
def test_nobody_is_left_out_where_a_verdict_has_two_prompts(verdicts: list[str | None]) -> None:
    after = with_others(rows([(verdict,) for verdict in verdicts]), seed=1)
    alone = {verdict for verdict, count in Counter(verdicts).items() if count == 1}
    assert {row.verdict for row in after if row.other_critique is None} == alone


def test_another_seed_gives_another_order() -> None:
    before = rows([("wrong",)] * 30)
    assert with_others(before, 1) == with_others(before, 1)
    assert with_others(before, 1) != with_others(before, 2)
