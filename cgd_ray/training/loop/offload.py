"""What leaves a rank's device, and the folder on a machine's own disk where it lies under `offload: nvme`."""

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.ops.op_builder import AsyncIOBuilder

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.distributed import refuse_together


def offloads(training: TrainingSection, device: torch.device) -> bool:
    """Whether anything moves away: never to the host where the device is the host."""
    return training.offload == "nvme" or (training.offload == "cpu" and device.type != "cpu")


def swap_folder(parent: str | None, name: str, group: dist.ProcessGroup) -> Path | None:
    """Of this rank alone, and empty: the files of one that was killed are worth nothing. All ranks call it together.

    Args:
        parent: `training.offload_folder`; without one nothing is made.
        name: of the training and the rank.
        group: of all ranks.

    Raises:
        RefusedError: one of the ranks cannot make it, or its machine cannot work with it.
    """
    if parent is None:
        return None
    folder = Path(parent, name)
    refuse_together(_refusal(folder), group)
    return folder


def _refusal(folder: Path) -> str | None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        return f"training.offload_folder: {error}; name a folder that every machine can write"
    if not AsyncIOBuilder().is_compatible(verbose=False):
        return (
            "training.offload: nvme needs libaio's headers on every machine that trains (Debian: apt-get install "
            "libaio-dev), which DeepSpeed compiles against; install them, or take offload: cpu"
        )
    return None
