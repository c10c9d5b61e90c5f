"""A rank's share of the fp32 weights and Adam's moments in any ZeRO stage, by parameter name and position.

Stages 1 and 2 give each rank a contiguous range of all parameters laid end to end. Stage 3 gives it an equal share of
every parameter, stage 0 everything. Stored as ranges of flattened parameters, the states are readable in any layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from deepspeed import DeepSpeedEngine

from cgd_ray.compat import deepspeed as compat

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's moments, by the names that every optimiser here uses."""

STATES = ("fp32", *MOMENTS)
"""States of a parameter: its weights, and the moments."""


@dataclass(frozen=True)
class StateShard:
    """A contiguous range of a flattened fp32 tensor."""

    tensor: torch.Tensor
    """1-D; from a live engine, a view of its memory."""
    start: int
    """Index of its first element in the flattened whole."""
    length: int
    whole: int
    """Number of elements of the whole."""


def shards_of(engine: DeepSpeedEngine) -> dict[str, StateShard]:
    """Return this rank's share of every state by `STATE/PARAMETER`, as views of the engine's tensors.

    `engine` is DeepSpeed's, with AdamW, after a step or `begin_at`.
    """
    stage = engine.zero_optimization_stage()
    return {
        f"{state}/{name}": shard
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
        for state, shard in _of_parameter(engine, stage, parameter)
    }


def begin_at(engine: DeepSpeedEngine, step: int) -> None:
    """Set Adam's step count, and its moments to zeros, to be filled."""
    stage = engine.zero_optimization_stage()
    adam = engine.optimizer.optimizer if stage else engine.optimizer
    for tensor in _flat_tensors(engine, stage):
        # DeepSpeed's CPU Adam keeps the count in an integer, torch's in a tensor.
        is_torch = isinstance(adam, torch.optim.AdamW)
        adam.state[tensor] = {"step": torch.tensor(float(step), device=tensor.device) if is_torch else step}
        adam.state[tensor] |= {name: torch.zeros_like(tensor) for name in MOMENTS}


def refresh_weights(engine: DeepSpeedEngine) -> None:
    """Round the forward pass's weights from the fp32 weights again. All ranks call it together."""
    compat.refresh_weights(engine.optimizer, engine.zero_optimization_stage())


def _flat_tensors(engine: DeepSpeedEngine, stage: int) -> list[torch.Tensor]:
    """Return the tensors that Adam itself updates on this rank."""
    if stage == 0:
        return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    return compat.flat_tensors(engine.optimizer, stage)


def _of_parameter(engine: DeepSpeedEngine, stage: int, parameter: torch.Tensor) -> Iterator[tuple[str, StateShard]]:
    if stage == 0:
        for state in STATES:
            tensor = _state(engine.optimizer, parameter, state).view(-1)
            yield state, StateShard(tensor, 0, parameter.numel(), parameter.numel())
    elif found := compat.fragment_of(engine.optimizer, stage, parameter):
        for state in STATES:
            tensor = _state(engine.optimizer.optimizer, found.flat, state).narrow(0, found.offset, found.length)
            yield state, StateShard(tensor, found.start, found.length, found.whole)


def _state(adam: torch.optim.Optimizer, weights: torch.Tensor, state: str) -> torch.Tensor:
    tensor: torch.Tensor = weights if state == "fp32" else adam.state[weights][state]
    return tensor.data
