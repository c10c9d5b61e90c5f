"""Apply a function to many items: on the cluster if Ray is connected, else in this process."""

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
from cgd_ray.redaction import one_line
from cgd_ray.runtime.interrupts import interruptibly

Item = TypeVar("Item")
Result = TypeVar("Result")
Started = TypeVar("Started")


class _Node(TypedDict):
    NodeID: str
    Alive: bool
    Resources: dict[str, float]


# A task costs the start of a worker and its imports: seconds for the first tasks.
_FEW = 8
_TASK_BYTES = 2**30  # twice the measured maximum of one task


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in the order of the items; computed in Ray tasks if Ray is connected and items are many.

    Tasks request no CPU, since engines of another command may hold all CPUs for hours. Ray would run all such tasks on
    the driver's node, so each task is assigned a node: as many at a time as a node has CPUs and GiB of memory.

    Raises:
        CgdError: a task was lost too often.
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
            raise error.cause from error  # the one-line error, without the worker's traceback
        except ray.exceptions.RayError as error:
            text = one_line(error, 500)
            raise CgdError(f"a task on the cluster was lost: {text}. Fix: {RERUN}") from error
        free.append(place)


def _places(nodes: Sequence[_Node]) -> deque[str]:
    """Ids of the running nodes, each once per task that it may run; nodes without CPUs only if no others run."""
    alive = {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}
    working = {node: held for node, held in alive.items() if held.get("CPU", 0) >= 1} or alive
    slots = {
        node: max(1, int(min(held.get("CPU", 0) or _idle_cores(), held.get("memory", 0) / _TASK_BYTES)))
        for node, held in working.items()
    }
    rounds = range(max(slots.values()))
    return deque(node for turn in rounds for node, count in slots.items() if turn < count)


def _idle_cores() -> int:
    """Cores of a head that gets no work from Ray and is still alone: half of this machine's, as heads are alike."""
    return (os.cpu_count() or 1) // 2


def _start(
    call: RemoteFunction, free: deque[str], shared: "ray.ObjectRef[object]", item: object
) -> tuple[str, "ray.ObjectRef[object]"]:
    """Start the task of one item on a free place; on another node, if that node has left the cluster."""
    place = free.popleft()
    strategy = NodeAffinitySchedulingStrategy(place, soft=True)
    return place, call.options(scheduling_strategy=strategy).remote(shared, item)


def _ahead(room: int, started: Iterator[Started]) -> Iterator[Started]:
    """The same items, with up to `room` of them started before the first is yielded."""
    waiting = deque(islice(started, room))
    while waiting:
        yield waiting.popleft()
        waiting.extend(islice(started, 1))


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
