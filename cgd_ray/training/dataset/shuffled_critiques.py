"""Assign rows the critiques of other rows in place of their own, to measure the value of specific critiques."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from cgd_ray.methods import Example
from cgd_ray.storage.fingerprint import derived_seed


def with_others(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return the examples, each with the critique of another prompt's draft with the same verdict, if there is one.

    A derangement: no critique is used twice. Rows of one verdict are put in an order drawn by the seed, with rows of
    one prompt adjacent. Each row takes the critique N places further; N is the largest number of rows of a prompt.
    """
    found = list(examples)
    groups: defaultdict[str | None, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        groups[example.verdict].append(place)
    for places in groups.values():
        places.sort(key=lambda place: _order(examples[place], seed))
        step = max(Counter(examples[place].prompt_id for place in places).values())
        for at, place in enumerate(places):
            other = examples[places[(at + step) % len(places)]]
            if other.prompt_id != examples[place].prompt_id:
                found[place] = replace(examples[place], other_critique=other.critique)
    return found


def _order(example: Example, seed: int) -> tuple[int, str, int]:
    return derived_seed(seed, "shuffled", example.prompt_id), example.prompt_id, example.sample
