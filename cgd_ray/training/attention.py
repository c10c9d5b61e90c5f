"""Attention between the rows of a pack: which implementation cuts it, and one of ours for CPU."""

from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

from cgd_ray.config.training import TrainingSection

Loadable = Literal["sdpa", "flex_attention", "flash_attention_2"]

_BY_ROW = "cgd_by_row"
_LIMITS = ("sliding_window", "attention_chunk_size")  # of a configuration: tokens that see each other at most


def loaded_with(training: TrainingSection, device: torch.device) -> Loadable:
    """What the model is loaded with: transformers says here whether the architecture can do with it."""
    if training.attention == "by_row":
        return "sdpa"
    if training.attention != "auto":
        return training.attention
    if device.type == "cpu":
        return "sdpa"
    return "flash_attention_2" if is_flash_attn_2_available() else "flex_attention"


def attend_by_row(model: PreTrainedModel, training: TrainingSection, device: torch.device) -> None:
    """Let a model that was loaded with sdpa attend row by row, where the recipe or the device asks for it.

    Rows that may be longer than the architecture's window stay with sdpa, whose mask knows windows.
    """
    limits = [getattr(model.config, name, None) for name in _LIMITS]
    fits = all(limit is None or limit >= training.max_length for limit in limits)
    wanted = training.attention == "by_row" or (training.attention == "auto" and device.type == "cpu")
    if wanted and fits:
        AttentionInterface.register(_BY_ROW, _by_row)
        model.set_attn_implementation(_BY_ROW)


def _by_row(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention [1, heads, T, size] -> [1, T, heads, size] within each run of restarting positions [1, T].

    With a mask of all pairs a fused kernel on CPU computes all pairs, too: for n rows of one length n times the work.
    """
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    lengths = [end - start for start, end in zip(starts, [*starts[1:], query.shape[2]], strict=True)]
    rows = zip(*(torch.split(states, lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, *row, None, **options)[0] for row in rows]
    return torch.cat(outputs, dim=1), None
