"""Figures from token scores: uncertainty per context, and what parts of the critique explain of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cgd_ray.analysis.contexts import CONTEXTS
from cgd_ray.errors import CgdError
from cgd_ray.evaluation.statistics import Interval
from cgd_ray.storage.fingerprint import derived_seed
from cgd_ray.storage.tables import Table

_KINDS = ("nll", "entropy")
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
        CgdError: there are no rows.
    """
    prompts, columns = _columns(scores)
    figures = columns | {
        ("difference", name): columns["nll", first] - columns["nll", second]
        for name, (first, second) in DIFFERENCES.items()
    }
    found = dict(zip(figures, _bootstrap(prompts, list(figures.values()), confidence, resamples, seed), strict=True))
    by_kind = {
        wanted: {name: estimate for (kind, name), estimate in found.items() if kind == wanted}
        for wanted in ("nll", "entropy", "difference")
    }
    return Measures(len(prompts), len(set(prompts)), by_kind["nll"], by_kind["entropy"], by_kind["difference"])


def _columns(scores: Table) -> tuple[list[str], dict[tuple[str, str], Values]]:
    """Return the rows' prompts, and means over each row's tokens by kind and context, in the same order of rows."""
    parts = []
    for part in scores.batches():
        means = {kind: pa.array(_means(part[kind])) for kind in _KINDS}
        parts.append(pa.table({name: part[name] for name in ("prompt_id", "sample", "context")} | means))
    if not sum(map(len, parts)):
        raise CgdError(
            "analysis: no example has all contexts (another prompt's critique with its verdict, a refinement that "
            "states its result, no more than training.max_length tokens). Fix: generate more rows"
        )
    rows = pa.concat_tables(parts).sort_by([("prompt_id", "ascending"), ("sample", "ascending")])
    by_context = {context: rows.filter(pc.equal(rows["context"], context)) for context in CONTEXTS}
    first = next(iter(by_context.values()))
    columns = {(kind, context): table[kind].to_numpy() for kind in _KINDS for context, table in by_context.items()}
    return first["prompt_id"].to_pylist(), columns


def _means(lists: pa.ChunkedArray) -> Values:
    """Return the mean of each list; none is empty."""
    joined = lists.combine_chunks()
    starts = joined.offsets.to_numpy()
    flat = joined.values.to_numpy().astype(np.float64)
    return np.add.reduceat(flat, starts[:-1]) / np.diff(starts) if len(joined) else np.empty(0)


def _bootstrap(
    prompts: list[str], columns: list[Values], confidence: float, resamples: int, seed: int
) -> list[Estimate]:
    """Estimate the mean of each column; every resample of the prompts serves all columns."""
    _, cluster = np.unique(np.array(prompts), return_inverse=True)
    count = int(cluster.max()) + 1
    sums = np.array([np.bincount(cluster, values, count) for values in columns])
    rows = np.bincount(cluster, minlength=count)
    generator = np.random.default_rng(derived_seed("bootstrap of prompts", seed))
    means = np.empty((resamples, len(columns)))
    for place in range(resamples):  # one at a time: millions of prompts are drawn
        times = np.bincount(generator.integers(0, count, count), minlength=count)
        means[place] = sums @ times / (rows @ times)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return [
        Estimate(float(values.mean()), Interval(float(low[place]), float(high[place])))
        for place, values in enumerate(columns)
    ]
