"""The same function over many items: on the cluster where there is one, else here."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import ray
import ray.exceptions

from cgd_ray.runtime.waiting import interruptibly

Item = TypeVar("Item")
Result = TypeVar("Result")

# A task costs a worker's start and its imports: seconds for the first ones.
_FEW = 8


def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in the order of the items; as Ray tasks of one CPU each where Ray is connected and items are many."""
    if len(items) <= _FEW or not ray.is_initialized():
        yield from map(function, items)
        return
    call = ray.remote(num_cpus=1, max_retries=3)(_call)
    shared = ray.put(function)
    for made in [call.remote(shared, item) for item in items]:
        try:
            yield interruptibly(partial(ray.get, made))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # one line of ours, not a worker's trace


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
