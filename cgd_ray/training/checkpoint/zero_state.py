"""What a rank holds of the fp32 weights and Adam's moments, whatever the ZeRO stage: by parameter name and place.

Stages 1 and 2 give each rank a run of all parameters laid end to end, stage 3 an equal share of every parameter,
stage 0 everything to everybody. As runs of flattened parameters, what one layout wrote any other can read.

Source: DeepSpeed 0.19.8, `runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`, `utils/tensor_fragment.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.base_optimizer import ZeROOptimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, as every optimiser here names them."""

STATES = ("fp32", *MOMENTS)
"""Of a parameter: its weights, and the moments."""


@dataclass(frozen=True)
class StateShard:
    """A run of a flattened fp32 tensor."""

    tensor: torch.Tensor
    """1-D. Of a live engine: its own memory."""
    start: int
    """Place of its first element in the flattened whole."""
    length: int
    whole: int
    """Elements of the whole."""


def shards_of(engine: DeepSpeedEngine) -> dict[str, StateShard]:
    """This rank's share of every state, by `STATE/PARAMETER`; views of what the engine works with.

    `engine` is DeepSpeed's, with AdamW, which has made a step or was told to begin at one.
    """
    stage = engine.zero_optimization_stage()
    return {
        f"{state}/{name}": shard
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
        for state, shard in _of_parameter(engine, stage, parameter)
    }


def begin_at(engine: DeepSpeedEngine, step: int) -> None:
    """Set Adam's step count; its moments are zeros, to be filled."""
    stage = engine.zero_optimization_stage()
    adam = engine.optimizer.optimizer if stage else engine.optimizer
    for tensor in _flat_tensors(engine, stage):
        # DeepSpeed's CPU Adam counts in an integer, torch's in a tensor.
        is_torch = isinstance(adam, torch.optim.AdamW)
        adam.state[tensor] = {"step": torch.tensor(float(step), device=tensor.device) if is_torch else step}
        adam.state[tensor] |= {name: torch.zeros_like(tensor) for name in MOMENTS}


def refresh_weights(engine: DeepSpeedEngine) -> None:
    """Round the forward pass's weights from the fp32 ones anew, on all ranks together."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    if stage == 3:
        # What the last pass left whole would stay as it was.
        optimizer.checkpoint_event_prologue()
        for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            half = optimizer.fp16_partitioned_groups_flat[number]
            half.data.copy_(flat.data)
            views = optimizer.unflatten(half, optimizer.fp16_partitioned_groups[number])
            for partition, view in zip(optimizer.fp16_partitioned_groups[number], views, strict=True):
                partition.data = view.data
        optimizer.checkpoint_event_epilogue()


def _flat_tensors(engine: DeepSpeedEngine, stage: int) -> list[torch.Tensor]:
    """The tensors that Adam itself updates on this rank."""
    if stage == 0:
        return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return _flat_partitions(engine.optimizer)


def _flat_partitions(optimizer: ZeROOptimizer) -> list[torch.Tensor]:
    """In stages 1 and 2; for stage 1 in bfloat16 DeepSpeed has an optimiser of its own with names of its own."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return list(optimizer.single_partition_of_fp32_groups)
    return list(optimizer.fp32_groups_flat_partition)


def _of_parameter(engine: DeepSpeedEngine, stage: int, parameter: Any) -> Iterator[tuple[str, StateShard]]:
    if stage == 0:
        for state in STATES:
            tensor = _state(engine.optimizer, parameter, state).view(-1)
            yield state, StateShard(tensor, 0, parameter.numel(), parameter.numel())
    elif stage == 3:
        yield from _of_share(engine.optimizer, parameter)
    elif (mapping := parameter._hp_mapping) is not None:  # none: this rank has nothing of it
        flat = _flat_partitions(engine.optimizer)[mapping.param_group_index]
        place, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
        for state in STATES:
            tensor = _state(engine.optimizer.optimizer, flat, state).narrow(0, place.start, place.numel)
            yield state, StateShard(tensor, start, place.numel, parameter.numel())


def _of_share(optimizer: ZeROOptimizer, parameter: Any) -> Iterator[tuple[str, StateShard]]:
    group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank() * numel
    length = min(numel, parameter.ds_numel - start)  # the last shares are filled up

    if length > 0:
        flat = optimizer.fp32_partitioned_groups_flat[group]
        for state in STATES:
            tensor = _state(optimizer.optimizer, flat, state).narrow(0, offset, length)
            yield state, StateShard(tensor, start, length, parameter.ds_numel)


def _state(adam: torch.optim.Optimizer, weights: torch.Tensor, state: str) -> torch.Tensor:
    tensor: torch.Tensor = weights if state == "fp32" else adam.state[weights][state]
    return tensor.data
