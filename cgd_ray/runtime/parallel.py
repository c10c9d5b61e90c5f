"""The same function over many items: on the cluster where there is one, else here."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypedDict, TypeVar

import ray
import ray.exceptions
from ray.remote_function import RemoteFunction
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cgd_ray.errors import RERUN, CgdError
from cgd_ray.runtime.interrupts import interruptibly

Item = TypeVar("Item")
Result = TypeVar("Result")
Started = TypeVar("Started")


class _Node(TypedDict):
    NodeID: str
    Alive: bool
    Resources: dict[str, float]


# A task costs a worker's start and its imports: seconds for the first ones.
_FEW = 8
_TASK_BYTES = 2**30  # twice what one took at most


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in the order of the items; as Ray tasks where Ray is connected and items are many.

    Tasks ask for no CPU, since what another command's engines hold may not be given back for hours. Ray would run all
    of them on the driver's node, so that each is given a node: as many at a time as a node has CPUs and GiB of memory.

    Raises:
        CgdError: a task was lost again and again.
    """
    if len(items) <= _FEW or not ray.is_initialized():
        yield from map(function, items)
        return
    call = ray.remote(num_cpus=0, max_retries=3)(_call)
    shared = ray.put(function)
    free = _places(ray.nodes())
    for place, made in _ahead(len(free), (_start(call, free, shared, item) for item in items)):
        try:
            yield interruptibly(partial(ray.get, made))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # one line of ours, not a worker's trace
        except ray.exceptions.RayError as error:
            text = " ".join(str(error).split())[:500]
            raise CgdError(f"a task on the cluster was lost: {text}. Fix: {RERUN}") from error
        free.append(place)


def _places(nodes: Sequence[_Node]) -> deque[str]:
    """Ids of the living nodes, each as often as it may have a task; those without CPUs only where no other lives."""
    alive = {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}
    working = {node: held for node, held in alive.items() if held.get("CPU", 0) >= 1} or alive
    slots = {
        node: max(1, int(min(held.get("CPU", 0) or _idle_cores(), held.get("memory", 0) / _TASK_BYTES)))
        for node, held in working.items()
    }
    rounds = range(max(slots.values()))
    return deque(node for turn in rounds for node, count in slots.items() if turn < count)


def _idle_cores() -> int:
    """Of a head that Ray gives no work and that is alone yet: half of what this machine has, as heads are alike."""
    return (os.cpu_count() or 1) // 2


def _start(
    call: RemoteFunction, free: deque[str], shared: "ray.ObjectRef[object]", item: object
) -> tuple[str, "ray.ObjectRef[object]"]:
    """The task of one item on a free place; elsewhere, where that node is gone by then."""
    place = free.popleft()
    strategy = NodeAffinitySchedulingStrategy(place, soft=True)
    return place, call.options(scheduling_strategy=strategy).remote(shared, item)


def _ahead(room: int, started: Iterator[Started]) -> Iterator[Started]:
    """The same things, so many of them started before the first is looked at."""
    waiting = deque(islice(started, room))
    while waiting:
        yield waiting.popleft()
        waiting.extend(islice(started, 1))


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
