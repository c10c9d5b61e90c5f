"""The loss of one packed forward pass, and the check that packed rows do not affect each other."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.utils.generic import is_flash_attention_requested

from cgd_ray.training.dataset.packing import PackedRows, join
from cgd_ray.training.job import RefusedError

UNSUPPORTED_ERRORS = (ValueError, TypeError, AttributeError, RuntimeError)
"""Errors that architectures raise if they do not support an attention, or tensors without values."""


def packed_logits(model: Any, rows: PackedRows, device: torch.device) -> torch.Tensor:
    """Return logits [S, vocabulary] at the positions that predict a supervised token.

    Transformers cuts attention where position ids restart only without an attention mask and without a cache. With
    `use_cache` at its default, the rows of a pack attend to each other. Other positions' logits are never computed:
    with a vocabulary of 150k and a third of the tokens supervised, they take most of a pass's memory.
    """
    logits: torch.Tensor = model(**_inputs(model, rows, device)).logits.squeeze(0)
    return logits


def _inputs(model: nn.Module, rows: PackedRows, device: torch.device) -> dict[str, torch.Tensor | bool | int]:
    inputs: dict[str, torch.Tensor | bool | int] = {
        "input_ids": torch.from_numpy(rows.input_ids).to(device).unsqueeze(0),
        "position_ids": torch.from_numpy(rows.position_ids).to(device).unsqueeze(0),
        "logits_to_keep": torch.from_numpy(rows.predicting).to(device),
        "use_cache": False,
    }
    if is_flash_attention_requested(getattr(model, "module", model).config):
        # Otherwise each layer derives the borders from the positions, and waits for the device.
        borders = rows.borders
        longest = int(np.diff(borders).max())
        inputs |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), torch.from_numpy(borders).to(device))
        inputs |= dict.fromkeys(("max_length_q", "max_length_k"), longest)
    return inputs


def summed_loss(model: Any, rows: PackedRows, device: torch.device, *, fused: bool = False) -> torch.Tensor:
    """Return the sum of the negative log-likelihoods of the supervised tokens, in fp32.

    Args:
        model: wrapped by DeepSpeed, or bare.
        rows: one pass.
        device: of the model.
        fused: whether Liger's kernel computes it from the last hidden states, chunk by chunk.
    """
    labels = torch.from_numpy(rows.labels).to(device)
    if fused:
        # Liger returns the sum if it is given a number of items to divide it by.
        wanted = {"shift_labels": labels.unsqueeze(0), "num_items_in_batch": 1, "skip_logits": True}
        loss: torch.Tensor = model(**_inputs(model, rows, device), **wanted, accum_dtype=torch.float32).loss
        return loss
    return functional.cross_entropy(packed_logits(model, rows, device).float(), labels, reduction="sum")


@torch.no_grad()
def require_isolation(model: Any, vocabulary: int, device: torch.device) -> None:
    """Check on the model itself that a packed row's logits do not depend on the row before it.

    Two packs of the same shape differ only in their first row. Under isolation, the second row's logits are bitwise
    equal, except for kernels whose order of summation depends on content (mixture of experts).

    Raises:
        RefusedError: the logits differ: this architecture mixes packed rows (convolutions, linear attention).
    """
    generator = np.random.default_rng(0)
    first, other, second = generator.integers(0, vocabulary, size=(3, 16))
    was_training = model.training
    model.eval()  # dropout would also cause a difference
    logits = [packed_logits(model, join([(before, 16), (second, 1)]), device).float() for before in (first, other)]
    model.train(was_training)
    difference = (logits[0] - logits[1]).abs().max().item()
    if difference > 1e-3 * logits[0].std().item():
        raise RefusedError(
            f"student.model: rows packed into one pass see each other (logits differ by {difference:.2g}). "
            "Fix: take a model with plain attention"
        )
