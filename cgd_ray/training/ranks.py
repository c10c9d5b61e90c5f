"""The ranks together: how they find each other, wait for what one of them does alone, and end where one has to."""

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from cgd_ray.training.job import RankJob, RefusedError

Value = TypeVar("Value")
_HOURS = 12  # terabytes to a slow store; the default group gives up after ten minutes


def join_ranks(job: RankJob) -> torch.device:
    """This rank's device, and the default process group, where nobody made it yet. All ranks call it together."""
    if job.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    # Beside a GPU for the optimiser's states on the host; torchrun would leave one thread for them.
    torch.set_num_threads(job.threads)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if job.device == "cuda" else "gloo")
    return device


def patient_group() -> dist.ProcessGroup:
    """A process group of all ranks on the host, in which waiting may take hours. All ranks call it together."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(hours=_HOURS))
    return group


def agreed(value: Value, group: dist.ProcessGroup) -> Value:
    """Rank 0's. All ranks call it together, with a group of `patient_group`."""
    values = [value]
    dist.broadcast_object_list(values, group=group, src=0)
    return values[0]


def refuse_together(refusal: str | None, group: dist.ProcessGroup) -> None:
    """Stop all ranks where one of them has to: the others would wait for it. All ranks call it together.

    Args:
        refusal: why this rank cannot go on, None where it can.
        group: of `patient_group`.

    Raises:
        RefusedError: what the first of them says.
    """
    refusals: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(refusals, refusal, group=group)
    for said in refusals:
        if said is not None:
            raise RefusedError(said)
