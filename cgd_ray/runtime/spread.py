"""The same function over many items: on the cluster where there is one, else here."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import ray
import ray.exceptions

from cgd_ray.errors import CgdError
from cgd_ray.runtime.waiting import interruptibly

Item = TypeVar("Item")
Result = TypeVar("Result")
Started = TypeVar("Started")

# A task costs a worker's start and its imports: seconds for the first ones.
_FEW = 8


def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in the order of the items; as Ray tasks where Ray is connected and items are many.

    As many at a time as the cluster has CPUs, though they ask for none: what another command's engines hold may not be
    given back for hours.

    Raises:
        CgdError: a task was lost again and again.
    """
    if len(items) <= _FEW or not ray.is_initialized():
        yield from map(function, items)
        return
    call = ray.remote(num_cpus=0, max_retries=3)(_call)
    shared = ray.put(function)
    room = max(2, int(ray.cluster_resources().get("CPU", 0)))
    for made in _ahead(room, (call.remote(shared, item) for item in items)):
        try:
            yield interruptibly(partial(ray.get, made))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # one line of ours, not a worker's trace
        except ray.exceptions.RayError as error:
            text = " ".join(str(error).split())[:500]
            raise CgdError(f"work that was spread over the cluster was lost: {text}") from error


def _ahead(room: int, started: Iterator[Started]) -> Iterator[Started]:
    """The same things, so many of them started before the first is looked at."""
    waiting = deque(islice(started, room))
    while waiting:
        yield waiting.popleft()
        waiting.extend(islice(started, 1))


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
