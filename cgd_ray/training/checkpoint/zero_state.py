"""What a rank holds of the fp32 weights and Adam's moments, whatever the ZeRO stage: by parameter name and place.

Stages 1 and 2 give each rank a run of all parameters laid end to end, stage 3 an equal share of every parameter,
stage 0 everything to everybody. As runs of flattened parameters, what one layout wrote any other can read.

Source: DeepSpeed 0.19.8, `runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`, `utils/tensor_fragment.py`.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
class Piece:
    """A run of a flattened fp32 tensor."""

    fetch: Callable[[], torch.Tensor]
    """1-D. Of a live engine: its own memory; where that lies on NVMe, only until another piece is fetched."""
    start: int
    """Place of its first element in the flattened whole."""
    length: int
    whole: int
    """Elements of the whole."""


@contextlib.contextmanager
def pieces_of(engine: DeepSpeedEngine, *, change: bool = False) -> Iterator[dict[str, Piece]]:
    """This rank's share of every state, by `STATE/PARAMETER`; views of what the engine works with.

    Args:
        engine: DeepSpeed's, with AdamW, which has made a step or was told to begin at one.
        change: whether what is written into a piece is to stay where it lies on NVMe, too.
    """
    stage = engine.zero_optimization_stage()
    with _Resident.of(engine, change=change) as resident:
        yield {
            f"{state}/{name}": piece
            for name, parameter in engine.module.named_parameters()
            if parameter.requires_grad
            for state, piece in _of_parameter(engine, stage, parameter, resident)
        }


def begin_at(engine: DeepSpeedEngine, step: int) -> None:
    """Let Adam believe that it has made so many steps; its moments are zeros, to be filled."""
    stage = engine.zero_optimization_stage()
    adam = engine.optimizer.optimizer if stage else engine.optimizer
    with _Resident.of(engine, change=True) as resident:
        for number, tensor in enumerate(_flat_tensors(engine, stage)):
            resident.enter(number)
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
        with _Resident.of(engine, change=False) as resident:
            for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
                resident.enter(number)
                half = optimizer.fp16_partitioned_groups_flat[number]
                half.data.copy_(flat.data)
                views = optimizer.unflatten(half, optimizer.fp16_partitioned_groups[number])
                for partition, view in zip(optimizer.fp16_partitioned_groups[number], views, strict=True):
                    partition.data = view.data
        optimizer.checkpoint_event_epilogue()


def is_swapped(engine: DeepSpeedEngine) -> bool:
    """Whether states lie on NVMe, where a step and a checkpoint cannot work with them at the same time."""
    return engine.zero_optimization_stage() == 3 and bool(engine.optimizer.swap_optimizer)


class _Resident:
    """ZeRO-3's sub-groups whose states lie on NVMe: one of them is in memory at a time."""

    def __init__(self, optimizer: ZeROOptimizer | None, *, change: bool) -> None:
        """Without an optimiser all is in memory anyhow."""
        self._optimizer = optimizer
        self._change = change
        self._group: int | None = None

    @classmethod
    @contextlib.contextmanager
    def of(cls, engine: DeepSpeedEngine, *, change: bool) -> Iterator["_Resident"]:
        """Put back at the end what was in memory last, written anew where it may have changed."""
        resident = cls(engine.optimizer if is_swapped(engine) else None, change=change)
        try:
            yield resident
        finally:
            resident.enter(None)

    def enter(self, group: int | None) -> None:
        """Bring a sub-group's weights and moments into memory in the place of the one before."""
        if self._optimizer is None or group == self._group:
            return
        if self._group is not None and self._change:
            self._optimizer._optimizer_states_and_gradient_swap_out(self._group)
        elif self._group is not None:
            self._optimizer._release_swap_buffers(self._group)
        # Below DeepSpeed's least size for a file (1 MiB) a sub-group stays in memory.
        self._group = group if group is not None and self._optimizer._swappable_optimizer_subgroup(group) else None
        if self._group is not None:
            self._optimizer._optimizer_states_and_gradient_swap_in(self._group)


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


def _of_parameter(
    engine: DeepSpeedEngine, stage: int, parameter: Any, resident: _Resident
) -> Iterator[tuple[str, Piece]]:
    if stage == 0:
        for state in STATES:
            tensor = _state(engine.optimizer, parameter, state).view(-1)
            yield state, Piece(partial(_as_it_is, tensor), 0, parameter.numel(), parameter.numel())
    elif stage == 3:
        yield from _of_share(engine.optimizer, parameter, resident)
    elif (mapping := parameter._hp_mapping) is not None:  # none: this rank has nothing of it
        flat = _flat_partitions(engine.optimizer)[mapping.param_group_index]
        place, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
        for state in STATES:
            tensor = _state(engine.optimizer.optimizer, flat, state).narrow(0, place.start, place.numel)
            yield state, Piece(partial(_as_it_is, tensor), start, place.numel, parameter.numel())


def _of_share(optimizer: ZeROOptimizer, parameter: Any, resident: _Resident) -> Iterator[tuple[str, Piece]]:
    group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank() * numel
    length = min(numel, parameter.ds_numel - start)  # the last shares are filled up

    def fetch(state: str) -> torch.Tensor:
        resident.enter(group)
        flat = optimizer.fp32_partitioned_groups_flat[group]
        return _state(optimizer.optimizer, flat, state).narrow(0, offset, length)

    if length > 0:
        for state in STATES:
            yield state, Piece(partial(fetch, state), start, length, parameter.ds_numel)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _state(adam: torch.optim.Optimizer, weights: torch.Tensor, state: str) -> torch.Tensor:
    tensor: torch.Tensor = weights if state == "fp32" else adam.state[weights][state]
    return tensor.data
