"""Uncertainty of accuracies: intervals, paired differences between students, pass@k.

Verdicts end in the axis of the questions. Axes before it are a question's answers: samples of one student, or students
of one method that were trained with different seeds. Intervals and p-values are about questions, given these answers;
`seed_interval` is about seeds.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.signal import convolve
from scipy.stats import binom, binomtest
from scipy.stats import t as student_t

from cgd_ray.storage.fingerprint import derived_seed

_FEW_DISCORDANT = 10

Verdicts = npt.NDArray[np.bool_]
"""Of shape (questions,), (samples, questions) or (seeds, samples, questions)."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """How a method's students differ from another's, or from the base, on the same questions."""

    difference: float
    """Accuracy of the first minus accuracy of the second, each a mean over its seeds, in [-1, 1]."""

    interval: Interval
    """Percentile interval of the paired bootstrap over questions. With fewer than ten discordant questions, Bonett and
    Price's adjusted Wald interval: the bootstrap is too narrow there, and has zero width with none."""

    p_value: float
    """Exact two-sided sign-flip test of "neither is better"; for one student each, that is McNemar's exact test."""

    fixed: int
    """Questions that more of the first's students answer correctly."""

    broken: int
    """Questions that more of the second's students answer correctly."""


@dataclass(frozen=True)
class PairOfStudents:
    """How one method's students differ from another's on the same questions."""

    first: str
    second: str
    difference: PairedDifference
    adjusted_p_value: float
    """The p-value, adjusted by Holm for all pairs that were compared."""
    seeds: Interval | None
    """Interval of the difference over training seeds; None with fewer than two seeds each."""


def accuracy_interval(correct: Verdicts, confidence: float) -> Interval:
    """Interval of an accuracy over questions: Wilson's score interval; for several answers each, Student's.

    Unlike the normal approximation, Wilson's stays in [0, 1] and keeps a width when all or none are correct.

    Args:
        correct: Verdicts.
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: there are no questions.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927); E. Miller, Adding error bars to evals, arXiv 2411.00640 (clusters of answers to one question).
    """
    rows = _answers(correct)
    questions = rows.shape[1]
    if questions == 0:
        raise ValueError("an accuracy needs at least one question")
    if len(rows) == 1:
        wilson = binomtest(int(rows.sum()), questions).proportion_ci(confidence, method="wilson")
        return Interval(float(wilson.low), float(wilson.high))
    return _clipped(_student(rows.mean(axis=0), confidence), 0.0)


def paired_difference(
    base: Verdicts, trained: Verdicts, confidence: float, resamples: int, seed: int
) -> PairedDifference:
    """Compare two students, or two methods' students, on the same questions.

    Args:
        base: Verdicts of the second.
        trained: Verdicts of the first on the same questions in the same order; the number of answers may differ.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: the questions differ in number, or there are none.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 15; Q. McNemar,
    Psychometrika 12 (1947).
    """
    first, second = _answers(trained), _answers(base)
    if first.shape[1] != second.shape[1] or first.shape[1] == 0:
        raise ValueError(f"paired verdicts need the same questions, not {base.shape} and {trained.shape}")
    unit = math.lcm(len(first), len(second))
    changes = first.sum(axis=0) * (unit // len(first)) - second.sum(axis=0) * (unit // len(second))
    fixed, broken = int(np.sum(changes > 0)), int(np.sum(changes < 0))
    if fixed + broken < _FEW_DISCORDANT:
        interval = _adjusted_wald(changes / unit, confidence)
    else:
        interval = _bootstrap(changes / unit, confidence, resamples, seed)
    return PairedDifference(float(np.mean(changes / unit)), interval, _sign_flip_test(changes), fixed, broken)


def all_pairs(correct: Mapping[str, Verdicts], confidence: float, resamples: int, seed: int) -> list[PairOfStudents]:
    """Compare every student with every later one, as `paired_difference` does.

    Intervals are for one pair at a time; p-values are also adjusted for the number of pairs.

    Args:
        correct: Verdicts by name, in one order of the questions.
        confidence: Coverage of each interval, in (0, 1).
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: the shapes differ, or there are no questions.
    """
    names = list(itertools.combinations(correct, 2))
    found = [paired_difference(correct[one], correct[other], confidence, resamples, seed) for one, other in names]
    adjusted = holm([difference.p_value for difference in found])
    return [
        PairOfStudents(other, one, difference, p_value, seed_interval(correct[one], correct[other], confidence))
        for (one, other), difference, p_value in zip(names, found, adjusted, strict=True)
    ]


def seed_interval(base: Verdicts, trained: Verdicts, confidence: float) -> Interval | None:
    """Student's interval of the difference over training seeds, given the questions; None with fewer than two seeds.

    Students of equal seeds saw the same order of rows, so two trained methods are paired by seed. A base student, which
    has no seed, stands beside each.

    Args:
        base: Verdicts of the second, shape (seeds, ..., questions).
        trained: Verdicts of the first, of as many seeds; one of both may have a single student.
        confidence: Coverage, in (0, 1).
    """
    first, second = (one.reshape(len(one), -1).mean(axis=1) for one in map(np.atleast_2d, (trained, base)))
    return _clipped(_student(first - second, confidence), -1.0) if max(len(first), len(second)) > 1 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that rejecting those below alpha errs on any of them with a probability of at most alpha.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian J. of Statistics 6 (1979).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate without bias the probability that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k).

    Args:
        n: Samples drawn.
        c: Samples among them that are correct.
        k: Samples that a user would draw, at most n.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.

    Source: M. Chen et al., Evaluating large language models trained on code, arXiv 2107.03374, section 2.1.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _answers(verdicts: Verdicts) -> Verdicts:
    """Return verdicts of shape (answers, questions)."""
    return verdicts.reshape(math.prod(verdicts.shape[:-1]), verdicts.shape[-1])


def _bootstrap(changes: npt.NDArray[np.float64], confidence: float, resamples: int, seed: int) -> Interval:
    # Few values are possible, so drawing their counts equals resampling questions: the same distribution in
    # O(resamples) memory, for any number of questions.
    generator = np.random.default_rng(derived_seed("bootstrap", seed))
    values, counts = np.unique(changes, return_counts=True)
    means = generator.multinomial(len(changes), counts / len(changes), size=resamples) @ values / len(changes)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _adjusted_wald(changes: npt.NDArray[np.float64], confidence: float) -> Interval:
    """Add one question that is fixed and one that is broken, then take the normal approximation.

    Source: D. Bonett and R. Price, J. Educational and Behavioral Statistics 37 (2012), there for one student each.
    """
    more = np.append(changes, [1.0, -1.0])
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(np.std(more)) / math.sqrt(len(more))
    return _clipped(Interval(float(np.mean(more)) - half, float(np.mean(more)) + half), -1.0)


def _sign_flip_test(changes: npt.NDArray[np.int64]) -> float:
    """Return the probability of a sum at least this far from 0, with a fair coin for the sign of every change."""
    sizes, counts = np.unique(np.abs(changes[changes != 0]), return_counts=True)
    distribution = np.ones(1)  # of the sum, from its lowest value in steps of 1
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        signs = np.zeros(2 * size * count + 1)
        signs[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = convolve(distribution, signs)
    sums = np.arange(len(distribution)) - len(distribution) // 2
    return min(1.0, max(0.0, float(distribution[np.abs(sums) >= abs(int(changes.sum()))].sum())))


def _student(values: npt.NDArray[np.float64], confidence: float) -> Interval:
    """Student's interval of a mean; infinite for one value."""
    if len(values) < 2:
        return Interval(-math.inf, math.inf)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(student_t.ppf(0.5 + confidence / 2, len(values) - 1)) * spread
    return Interval(float(np.mean(values)) - half, float(np.mean(values)) + half)


def _clipped(interval: Interval, lowest: float) -> Interval:
    return Interval(max(lowest, interval.low), min(1.0, interval.high))
