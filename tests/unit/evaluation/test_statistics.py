import functools
import itertools
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cgd_ray.evaluation.statistics import (
    accuracy_interval,
    all_pairs,
    holm,
    paired_difference,
    pass_at_k,
    seed_interval,
)


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
    first = paired_difference(base, trained, 0.95, 501, seed=1)
    assert first == paired_difference(base, trained, 0.95, 501, seed=1)
    others = [paired_difference(base, trained, 0.95, 501, seed=seed).interval for seed in range(2, 6)]
    assert any(first.interval != other for other in others)


def test_verdicts_of_different_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="the same questions"):
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


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm (1979): 0.02, 0.03, 0.06
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_lowers(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    assert [adjusted[place] for place in np.argsort(p_values, kind="stable")] == sorted(adjusted)


def test_every_two_students_are_compared_once() -> None:
    correct = {"base": verdicts(10, 30), "a": verdicts(20, 20), "b": verdicts(20, 20)[::-1]}
    pairs = all_pairs(correct, 0.95, 1000, seed=0)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "base"), ("b", "base"), ("b", "a")]
    assert [pair.difference.difference for pair in pairs] == [0.25, 0.25, 0.0]
    assert pairs[0].difference == paired_difference(correct["base"], correct["a"], 0.95, 1000, seed=0)
    assert [pair.adjusted_p_value for pair in pairs] == holm([pair.difference.p_value for pair in pairs])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_one_student_each_is_tested_as_by_statsmodels(fixed: int, broken: int, same: int) -> None:
    base = verdicts(broken, fixed + same + 1)
    trained = np.array([False] * broken + [True] * fixed + [False] * (same + 1))
    result = paired_difference(base, trained, 0.95, 100, seed=0)
    known = mcnemar([[0, fixed], [broken, same]], exact=True)
    assert result.p_value == pytest.approx(min(1.0, known.pvalue), abs=1e-9)
    low, high = proportion_confint(fixed, len(base), 0.05, "wilson")
    interval = accuracy_interval(trained, 0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


def test_signs_of_several_seeds_are_flipped_as_by_counting_all() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random((3, 9)) < 0.6, generator.random((2, 9)) < 0.4
    result = paired_difference(second, first, 0.95, 100, seed=0)
    changes = first.mean(axis=0) - second.mean(axis=0)
    sums = [np.dot(signs, changes) for signs in itertools.product([1, -1], repeat=9)]
    assert result.difference == pytest.approx(changes.mean())
    assert result.p_value == pytest.approx(np.mean(np.abs(sums) >= abs(changes.sum()) - 1e-12))
    assert (result.fixed, result.broken) == (int((changes > 0).sum()), int((changes < 0).sum()))


def test_several_seeds_are_bootstrapped_by_question() -> None:
    generator = np.random.default_rng(5)
    ease = generator.random(200)
    first, second = generator.random((3, 200)) < ease, generator.random((3, 200)) < ease * 0.8
    fast = paired_difference(second, first, 0.9, 20_000, seed=3).interval
    picks = generator.integers(0, 200, size=(20_000, 200))
    slow = np.quantile((first.mean(axis=0) - second.mean(axis=0))[picks].mean(axis=1), [0.05, 0.95])
    assert [fast.low, fast.high] == pytest.approx(list(slow), abs=0.003)


@pytest.mark.parametrize("questions", [40, 240, 2000])
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_hold_what_they_promise(questions: int, seeds: int) -> None:
    """Of 300 simulated evaluations whose questions differ in ease, 95 % intervals hold the truth in 92 to 98.5 %."""
    generator = np.random.default_rng(questions + seeds)
    truth, gain = 0.6 / 2.0, _mean_gain()
    held_accuracy = held_difference = 0
    for number in range(300):
        ease = generator.beta(0.6, 1.4, questions)  # most are hard: the mean is 0.3
        better = np.minimum(1, ease + 0.1)
        base, trained = generator.random((1, questions)) < ease, generator.random((seeds, questions)) < better
        one = accuracy_interval(generator.random((seeds, questions)) < ease, 0.95)
        other = paired_difference(base, trained, 0.95, 1000, seed=number).interval
        held_accuracy += one.low <= truth <= one.high
        held_difference += other.low <= gain <= other.high
    assert 0.92 <= held_accuracy / 300 <= 0.985
    assert 0.92 <= held_difference / 300 <= 0.985


@functools.cache
def _mean_gain() -> float:
    """Mean of min(1, ease + 0.1) - ease for the simulated questions, by one large draw."""
    ease = np.random.default_rng(0).beta(0.6, 1.4, 2_000_000)
    return float(np.mean(np.minimum(1, ease + 0.1) - ease))


def test_the_interval_over_seeds_is_students() -> None:
    base = np.zeros((1, 10), bool)
    trained = np.zeros((3, 10), bool)
    for seed, right in enumerate([2, 4, 6]):
        trained[seed, :right] = True
    interval = seed_interval(base, trained, 0.95)
    assert interval is not None
    half = 4.303 * 0.2 / 3**0.5  # t with 2 degrees of freedom, standard deviation 0.2
    assert (interval.low, interval.high) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-3)
    assert seed_interval(base, trained[:1], 0.95) is None
    paired = seed_interval(trained, trained, 0.95)
    assert paired is not None
    assert (paired.low, paired.high) == (0.0, 0.0)
