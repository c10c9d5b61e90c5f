"""DeepSpeed 0.19.8: which part of a parameter's fp32 weights and moments a rank holds, and where.

Source: `runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`, `utils/tensor_fragment.py`.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.runtime.base_optimizer import ZeROOptimizer


class Fragment(NamedTuple):
    """A contiguous range of a flattened parameter, in one of the flat tensors that Adam updates on this rank."""

    flat: torch.Tensor
    offset: int
    """Index of its first element in `flat`."""
    start: int
    """Index of its first element in the flattened parameter."""
    length: int
    whole: int
    """Elements of the whole parameter."""


def flat_tensors(optimizer: ZeROOptimizer, stage: int) -> list[torch.Tensor]:
    """Return the tensors that Adam itself updates on this rank in stage 1, 2 or 3.

    For stage 1 in bfloat16, DeepSpeed has a separate optimiser with other attribute names.
    """
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return list(optimizer.single_partition_of_fp32_groups)
    return list(optimizer.fp32_groups_flat_partition)


def fragment_of(optimizer: ZeROOptimizer, stage: int, parameter: Any) -> Fragment | None:
    """Return this rank's share of a parameter in stage 1, 2 or 3; None if it has none."""
    if stage == 3:
        group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = dist.get_rank() * numel
        length = min(numel, parameter.ds_numel - start)  # the last shares are padded
        if length <= 0:
            return None
        return Fragment(flat_tensors(optimizer, stage)[group], offset, start, length, parameter.ds_numel)
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat, place = flat_tensors(optimizer, stage)[mapping.param_group_index], mapping.hp_fragment_address
    return Fragment(flat, place.start, mapping.lp_fragment_address.start, place.numel, parameter.numel())


def refresh_weights(optimizer: ZeROOptimizer, stage: int) -> None:
    """Recompute the forward pass's weights from the fp32 weights, on all ranks together."""
    if stage in (1, 2):
        optimizer.update_lp_params()
    if stage == 3:
        optimizer.checkpoint_event_prologue()  # else parameters that the last pass gathered would keep their old values
        for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            half = optimizer.fp16_partitioned_groups_flat[number]
            half.data.copy_(flat.data)
            views = optimizer.unflatten(half, optimizer.fp16_partitioned_groups[number])
            for partition, view in zip(optimizer.fp16_partitioned_groups[number], views, strict=True):
                partition.data = view.data
        optimizer.checkpoint_event_epilogue()
