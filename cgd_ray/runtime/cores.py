"""File locks of this node: the CPU cores that an engine may pin its threads to, and loading onto a shared GPU.

A lock is released when its process ends.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cgd_ray.runtime.folders import state_folder


@dataclass
class CoreLease:
    """Cores held by this process until `release` or its end."""

    cores: list[int]
    files: list[IO[str]]

    def release(self) -> None:
        """Release the cores."""
        for file in self.files:
            file.close()


def lease_cores(count: int) -> CoreLease:
    """Take `count` cores of this node that no other engine holds.

    Ray counts CPUs but does not assign cores; without this lock, two engines pin their threads to the same ones. If
    fewer are free (Ray is configured with more CPUs than exist), engines share cores that are held.
    """
    cores = sorted(os.sched_getaffinity(0))
    files: list[IO[str]] = []
    taken: list[int] = []
    for core in cores:
        if len(taken) < min(count, len(cores)):
            file = _try_lock(state_folder("cores") / f"{core}.lock")
            if file is not None:
                files.append(file)
                taken.append(core)
    shared = [core for core in cores if core not in taken][: max(0, min(count, len(cores)) - len(taken))]
    return CoreLease(sorted(taken + shared), files)


@contextlib.contextmanager
def loading_alone(gpu: str) -> Iterator[None]:
    """Wait until no other engine loads onto this GPU, and block others while the block runs.

    vLLM counts all GPU memory that is allocated meanwhile as its own. `gpu` is the GPU's entry in
    `CUDA_VISIBLE_DEVICES`.
    """
    with (state_folder("gpus") / f"{gpu}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(path: Path) -> IO[str] | None:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
