from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgd_ray.evaluation.statistics import accuracy_interval, paired_difference, pass_at_k


def verdicts(right: int, wrong: int) -> np.ndarray:
    return np.array([True] * right + [False] * wrong)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_matches_published_values(right: int, total: int, low: float, high: float) -> None:
    interval = accuracy_interval(verdicts(right, total - right), 0.95)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(right=st.integers(0, 60), wrong=st.integers(0, 60), confidence=st.floats(0.5, 0.999))
def test_wilson_holds_the_accuracy_within_bounds(right: int, wrong: int, confidence: float) -> None:
    if right + wrong == 0:
        with pytest.raises(ValueError, match="at least one question"):
            accuracy_interval(verdicts(0, 0), confidence)
        return
    interval = accuracy_interval(verdicts(right, wrong), confidence)
    assert 0 <= interval.low <= right / (right + wrong) <= interval.high <= 1
    assert interval.low < interval.high


def test_wider_confidence_is_a_wider_interval() -> None:
    narrow, wide = accuracy_interval(verdicts(30, 20), 0.8), accuracy_interval(verdicts(30, 20), 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_paired_difference_of_the_paper_like_example() -> None:
    # 40 questions, 15 against 9 correct, all nine among the fifteen: six discordant, p = 2 / 2**6.
    base = verdicts(9, 31)
    trained = verdicts(15, 25)
    result = paired_difference(base, trained, 0.95, 10_000, seed=0)
    assert (result.fixed, result.broken) == (6, 0)
    assert result.difference == pytest.approx(0.15)
    assert result.p_value == pytest.approx(2 / 64)
    # Bonett and Price by hand: (7 - 1) / 42 with a standard error of 0.0636; the bootstrap would say 0.05 to 0.275.
    assert result.interval.low == pytest.approx(0.0182, abs=0.001)
    assert result.interval.high == pytest.approx(0.2676, abs=0.001)


def test_no_discordant_question_is_no_certainty() -> None:
    result = paired_difference(verdicts(3, 21), verdicts(3, 21), 0.95, 100, seed=0)
    assert result.difference == 0
    assert result.interval.low < -0.05
    assert result.interval.high > 0.05


@pytest.mark.parametrize(
    ("fixed", "broken", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (8, 2, 112 / 1024), (2, 8, 112 / 1024), (10, 1, 24 / 2048)],
)
def test_mcnemar_is_the_exact_binomial(fixed: int, broken: int, p_value: float) -> None:
    trained = np.array([True] * fixed + [False] * broken + [True] * 7)
    base = np.array([False] * fixed + [True] * broken + [True] * 7)
    assert paired_difference(base, trained, 0.95, 100, seed=1).p_value == pytest.approx(p_value)


def test_bootstrap_equals_resampling_the_questions_one_by_one() -> None:
    generator = np.random.default_rng(5)
    base, trained = generator.random(200) < 0.4, generator.random(200) < 0.5
    fast = paired_difference(base, trained, 0.9, 20_000, seed=3).interval
    picks = generator.integers(0, 200, size=(20_000, 200))
    slow = np.quantile((trained.astype(int) - base.astype(int))[picks].mean(axis=1), [0.05, 0.95])
    assert [fast.low, fast.high] == pytest.approx(list(slow), abs=0.0076)


def test_thousands_of_discordant_questions_do_not_overflow() -> None:
    base = np.array([True] * 2000 + [False] * 2100)
    result = paired_difference(base, ~base, 0.95, 1000, seed=0)
    assert 0 < result.p_value < 1
    assert result.interval.low < result.difference < result.interval.high


def test_the_seed_decides_the_interval() -> None:
    base, trained = verdicts(30, 70), verdicts(70, 30)[::-1]
    first = paired_difference(base, trained, 0.95, 500, seed=1)
    assert first == paired_difference(base, trained, 0.95, 500, seed=1)
    assert first.interval != paired_difference(base, trained, 0.95, 500, seed=2).interval


def test_verdicts_of_different_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_difference(verdicts(1, 1), verdicts(1, 2), 0.95, 10, seed=0)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == pytest.approx(0.25)
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(10, 0, 5) == 0.0
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(4, 1, 5)


@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 8))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([i < c for i in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))
