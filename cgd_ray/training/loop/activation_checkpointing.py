"""Gradient checkpointing if memory requires it: layers keep only inputs, and are recomputed in the backward pass."""

from pathlib import Path

import structlog
import torch
import torch.distributed as dist

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.dataset.encoded_rows import EncodedRows
from cgd_ray.training.memory import NoEstimateError, memory, model_sizes

log = structlog.get_logger(__name__)

_USABLE = 0.9  # of a GPU: the CUDA context, NCCL's buffers and allocator fragmentation take the rest


def resolve_checkpointing(
    training: TrainingSection, student: Path, rows: EncodedRows, device: torch.device, group: dist.ProcessGroup
) -> TrainingSection:
    """Return the recipe's section with `gradient_checkpointing` decided if unset. All ranks call it together.

    Args:
        training: section of the recipe.
        student: directory of the student.
        rows: rows to train on.
        device: of this rank.
        group: of all ranks, on the host.
    """
    if training.gradient_checkpointing is not None:
        return training
    rooms: list[int | None] = [None] * dist.get_world_size()
    # The minimum over ranks: under ZeRO-3 a layer that one rank recomputes gathers weights from the others.
    dist.all_gather_object(rooms, gpu_bytes(device), group=group)
    room = min((room for room in rooms if room is not None), default=None)
    here = training.model_copy(update={"workers": dist.get_world_size()})
    is_needed = room is not None and _exceeds(_USABLE * room, here, student, rows)
    return training.model_copy(update={"gradient_checkpointing": is_needed})


def _exceeds(room: float, training: TrainingSection, student: Path, rows: EncodedRows) -> bool:
    try:
        needed = needed_bytes(training, student, rows)
    except NoEstimateError as error:
        log.warning("no estimate for this student: training.gradient_checkpointing stays off", error=str(error))
        return False
    if dist.get_rank() == 0:
        gib = {"needed_gib": round(needed / 2**30, 1), "usable_gib": round(room / 2**30, 1)}
        log.info("GPU memory of a worker, estimated", **gib, gradient_checkpointing=needed > room)
    return needed > room


def gpu_bytes(device: torch.device) -> int | None:
    """Return a GPU's memory in bytes; None for a CPU, whose memory is shared with other processes."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def needed_bytes(training: TrainingSection, student: Path, rows: EncodedRows) -> float:
    """Estimate a rank's GPU memory in bytes at the peak of the longest pass, without gradient checkpointing."""
    return memory(model_sizes(student, training, rows.lengths, rows.supervised), training).device
