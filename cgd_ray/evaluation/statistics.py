"""Uncertainty of accuracies: intervals, paired differences between two models, pass@k."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cgd_ray.storage.fingerprint import derived_seed

_FEW_DISCORDANT = 10


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """How a trained model differs from its base on the same questions."""

    difference: float
    """Accuracy of the trained model minus accuracy of the base, in [-1, 1]."""

    interval: Interval
    """Percentile interval of the paired bootstrap over questions. With fewer than ten discordant questions, Bonett and
    Price's adjusted Wald interval: the bootstrap is too narrow there, and has zero width with none."""

    p_value: float
    """Exact two-sided McNemar test of "neither model is better"."""

    fixed: int
    """Questions that only the trained model answers correctly."""

    broken: int
    """Questions that only the base answers correctly."""


def accuracy_interval(correct: npt.NDArray[np.bool_], confidence: float) -> Interval:
    """Wilson's score interval of an accuracy.

    Unlike the normal approximation it stays in [0, 1] and keeps a width when all or none are correct.

    Args:
        correct: One verdict per question, shape (questions,).
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: there are no questions.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927).
    """
    n = len(correct)
    if n == 0:
        raise ValueError("an accuracy needs at least one question")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = float(np.mean(correct))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # If all or none are correct, rounding may move an end slightly past the accuracy itself.
    return Interval(max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def paired_difference(
    base: npt.NDArray[np.bool_], trained: npt.NDArray[np.bool_], confidence: float, resamples: int, seed: int
) -> PairedDifference:
    """Compare two models on the same questions.

    Args:
        base: Verdicts of the base model, shape (questions,).
        trained: Verdicts of the trained model on the same questions in the same order.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: the shapes differ, or there are no questions.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Q. McNemar,
    Psychometrika 12 (1947), in its exact binomial form.
    """
    if base.shape != trained.shape or base.ndim != 1 or len(base) == 0:
        raise ValueError(f"paired verdicts need one shape (questions,), not {base.shape} and {trained.shape}")
    n = len(base)
    fixed, broken = int(np.sum(trained & ~base)), int(np.sum(base & ~trained))
    if fixed + broken < _FEW_DISCORDANT:
        interval = _adjusted_wald(fixed, broken, n, confidence)
    else:
        interval = _bootstrap(fixed, broken, n, confidence, resamples, seed)
    return PairedDifference((fixed - broken) / n, interval, _mcnemar(fixed, broken), fixed, broken)


def _bootstrap(fixed: int, broken: int, n: int, confidence: float, resamples: int, seed: int) -> Interval:
    # A question's difference is +1, -1 or 0, so drawing the counts of the three equals resampling questions: the
    # same distribution in O(resamples) memory, for any number of questions.
    generator = np.random.default_rng(derived_seed("bootstrap", seed))
    counts = generator.multinomial(n, [fixed / n, broken / n, (n - fixed - broken) / n], size=resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _adjusted_wald(fixed: int, broken: int, n: int, confidence: float) -> Interval:
    """Source: D. Bonett and R. Price, J. Educational and Behavioral Statistics 37 (2012)."""
    better, worse = (fixed + 1) / (n + 2), (broken + 1) / (n + 2)
    spread = math.sqrt((better + worse - (better - worse) ** 2) / (n + 2))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return Interval(max(-1.0, better - worse - half), min(1.0, better - worse + half))


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


def _mcnemar(fixed: int, broken: int) -> float:
    """Return the probability of a split at least this uneven, with a fair coin for every discordant question."""
    discordant = fixed + broken
    tail = sum(math.comb(discordant, i) for i in range(min(fixed, broken) + 1))
    return min(1.0, 2 * tail / (1 << discordant))
