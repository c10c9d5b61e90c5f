"""Measure how much of one text occurs in another."""

_N = 5


def copy_rate(source: str, target: str, n: int = _N) -> float:
    """Return the share of the target's word n-grams that occur in the source; 0 for a target of fewer than n words."""
    wanted, known = _ngrams(target, n), set(_ngrams(source, n))
    return sum(gram in known for gram in wanted) / len(wanted) if wanted else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
