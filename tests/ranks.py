"""Processes that train together without Ray, kept for many trainings: a start costs more than a tiny model's steps."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from tests.servers import free_port


@dataclass(frozen=True)
class Raised:
    """What ended a function in a rank."""

    text: str


class Ranks:
    """So many processes in one gloo group."""

    def __init__(self, world: int, pipes: list[Connection]) -> None:
        self.world = world
        self._pipes = pipes

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The function's results on all ranks; it must be found by import."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results = [pipe.recv() for pipe in self._pipes]
        raised = [result.text for result in results if isinstance(result, Raised)]
        assert not raised, "\n".join(raised)
        return results


@contextlib.contextmanager
def ranks(world: int) -> Iterator[Ranks]:
    """Start the processes, and end them."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    pipes, processes = [], []
    for rank in range(world):
        mine, its = context.Pipe()
        pipes.append(mine)
        processes.append(context.Process(target=_serve, args=(its, rank, world, port), daemon=True))
    for process in processes:
        process.start()
    try:
        yield Ranks(world, pipes)
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(20)
            process.kill()


def _serve(pipe: Connection, rank: int, world: int, port: int) -> None:
    values = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in values.items()}
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    while (order := pipe.recv()) is not None:
        function, arguments = order
        try:
            pipe.send(function(*arguments))
        except BaseException as error:  # noqa: BLE001  the test is told
            pipe.send(Raised(f"rank {rank}: {type(error).__name__}: {error}"))
