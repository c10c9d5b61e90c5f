"""A rank whose GPU is full, pretended: its loss raises what PyTorch raises, and the other rank waits for it."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.actor import ActorHandle

from cgd_ray.training.job import RankJob

_FULL_AFTER = 2  # passes


def fill(starts: Path) -> None:
    """Note this rank's start in a file; rank 1 has no memory after some passes."""
    from cgd_ray.training.loop import trainer

    with starts.open("a") as file:
        file.write(f"{os.environ['RANK']}\n")
    loss, passes = trainer.summed_loss, []

    def filling(*arguments: Any, **options: Any) -> torch.Tensor:
        passes.append(1)
        if os.environ["RANK"] == "1" and len(passes) > _FULL_AFTER:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has ...")
        return loss(*arguments, **options)

    pytest.MonkeyPatch().setattr(trainer, "summed_loss", filling)


def train_on_ray_full(starts: Path, job: RankJob, board: ActorHandle) -> object:
    """In the place of `train_on_ray`."""
    from cgd_ray.training.launch.ray_worker import train_on_ray

    fill(starts)
    return train_on_ray(job, board)


if __name__ == "__main__":
    from cgd_ray.training.launch.torchrun import main

    fill(Path(os.environ["STARTS"]))
    sys.exit(main())
