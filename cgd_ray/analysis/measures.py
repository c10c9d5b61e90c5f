"""Figures from token scores: uncertainty per context, and what parts of the critique explain of it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cgd_ray.evaluation.statistics import Interval
from cgd_ray.storage.fingerprint import derived_seed
from cgd_ray.storage.tables import Table

Values = npt.NDArray[np.float64]

DIFFERENCES: Mapping[str, tuple[str, str]] = {
    "critique": ("draft", "critique"),
    "generic part": ("draft", "shuffled"),
    "input-specific part": ("shuffled", "critique"),
    "length alone": ("draft", "neutral"),
    "draft": ("prompt", "draft"),
    "final answer alone": ("prompt", "answer"),
}
"""Name, and the two contexts whose difference in negative log-likelihood it is.

`critique` estimates the pointwise mutual information of critique and refinement given prompt and draft, under the
model; it is the sum of the generic and the input-specific part.
"""


@dataclass(frozen=True)
class Estimate:
    """A mean over rows, in nats per token of the refinement."""

    value: float
    interval: Interval
    """Percentile interval of a bootstrap over prompts: rows of one prompt stay together."""


@dataclass(frozen=True)
class Measures:
    """How uncertain one student is about the refinements."""

    rows: int
    prompts: int
    nll: dict[str, Estimate]
    """By context: negative log-likelihood."""
    entropy: dict[str, Estimate]
    """By context: entropy of the predictions."""
    differences: dict[str, Estimate]
    """See `DIFFERENCES`; positive: the second context makes the refinement more likely."""


def measure(scores: Table, confidence: float, resamples: int, seed: int) -> Measures:
    """Compute the figures of one student from its table of scores (SCORES schema).

    Args:
        scores: table with every row under every context.
        confidence: coverage of the intervals, in (0, 1).
        resamples: bootstrap resamples.
        seed: seed of the resampling.

    Raises:
        ValueError: there are no rows.
    """
    rows = _means(scores)
    if not rows:
        raise ValueError("no rows are scored")
    prompts = [identity for identity, _ in rows]
    columns = {
        (kind, context): np.array([row[kind, context] for row in rows.values()])
        for kind, context in next(iter(rows.values()))
    }
    bootstrap = _Bootstrap(prompts, confidence, resamples, seed)
    contexts = list(dict.fromkeys(context for _, context in columns))
    differences = {
        name: bootstrap.estimate(columns["nll", first] - columns["nll", second])
        for name, (first, second) in DIFFERENCES.items()
    }
    return Measures(
        rows=len(rows),
        prompts=len(set(prompts)),
        nll={context: bootstrap.estimate(columns["nll", context]) for context in contexts},
        entropy={context: bootstrap.estimate(columns["entropy", context]) for context in contexts},
        differences=differences,
    )


def _means(scores: Table) -> dict[tuple[str, int], dict[tuple[str, str], float]]:
    """Return means over each row's tokens, by row, and by kind and context."""
    rows: dict[tuple[str, int], dict[tuple[str, str], float]] = defaultdict(dict)
    for part in scores.batches():
        for row in part.to_pylist():
            for kind in ("nll", "entropy"):
                rows[row["prompt_id"], row["sample"]][kind, row["context"]] = float(np.mean(row[kind]))
    return rows


class _Bootstrap:
    """Resamples prompts; the same resamples serve every figure."""

    def __init__(self, prompts: list[str], confidence: float, resamples: int, seed: int) -> None:
        _, self._cluster = np.unique(np.array(prompts), return_inverse=True)
        self._clusters = int(self._cluster.max()) + 1
        self._tail = (1 - confidence) / 2
        self._resamples, self._seed = resamples, derived_seed("bootstrap of prompts", seed)

    def estimate(self, values: Values) -> Estimate:
        sums = np.bincount(self._cluster, values, self._clusters)
        counts = np.bincount(self._cluster, minlength=self._clusters)
        generator = np.random.default_rng(self._seed)
        means = np.empty(self._resamples)
        for place in range(self._resamples):  # one at a time: millions of prompts are drawn
            drawn = generator.integers(0, self._clusters, self._clusters)
            means[place] = sums[drawn].sum() / counts[drawn].sum()
        low, high = np.quantile(means, [self._tail, 1 - self._tail])
        return Estimate(float(values.mean()), Interval(float(low), float(high)))
