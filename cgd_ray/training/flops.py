"""FLOPs of a step by the model's mathematics, and the share of the device's peak that the step reaches."""

import re
import resource
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from cgd_ray.training.dataset.packing import Ids

# Dense bfloat16 FLOP/s by part of the device's name, from the vendor's data sheets; the first match counts.
_PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "GH200": 989e12, "H200": 989e12, "B200": 2250e12,
    "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12,
}  # fmt: skip
_FORWARD, _FULL_BACKWARD, _FROZEN_BACKWARD = 2, 4, 2  # per parameter and token: frozen ones need no gradient


@dataclass(frozen=True)
class Flops:
    """Model sizes that determine the FLOPs of a pass."""

    body: int
    """Parameters of the matrices that apply to every token."""
    head: int
    """Parameters of the output layer, which applies to supervised positions only."""
    attention: int
    """Number of layers times the total width of the query heads."""
    is_frozen: bool
    """Whether only an adapter is trained."""

    @staticmethod
    def of(model: PreTrainedModel) -> "Flops | None":
        """Return a model's sizes, also sharded by ZeRO-3 or with an adapter; None for a mixture of experts."""
        config = model.config.get_text_config()
        if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
            return None
        head = _size(model.get_output_embeddings().weight)
        outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        matrices = [weight for weight in model.parameters() if len(_shape(weight)) == 2 and id(weight) not in outside]
        width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        return Flops(
            body=sum(map(_size, matrices)),
            head=head,
            attention=config.num_hidden_layers * width,
            is_frozen=not all(weight.requires_grad for weight in matrices),
        )

    def of_rows(self, lengths: Ids, supervised: Ids) -> float:
        """Return the FLOPs of forward and backward over rows of these lengths; attention is causal, within a row."""
        backward = _FROZEN_BACKWARD if self.is_frozen else _FULL_BACKWARD
        matrices = (_FORWARD + backward) * (self.body * float(lengths.sum()) + self.head * float(supervised.sum()))
        # Forward: two products (scores, values) of 2 FLOPs over half a square of positions. Backward: twice that.
        return matrices + 6 * self.attention * float((lengths.astype(float) ** 2).sum())


class Yardstick:
    """Computes the share of a device's peak FLOP/s that a model's steps reach."""

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._flops = Flops.of(model) if self._peak else None

    def mfu(self, lengths: Ids, supervised: Ids, device_seconds: float) -> float | None:
        """Return the model FLOPs utilisation over rows of these lengths; None if sizes or peak are unknown."""
        if self._peak is None or self._flops is None:
            return None
        return self._flops.of_rows(lengths, supervised) / (device_seconds * self._peak)


def peak_memory(device: torch.device) -> int:
    """Return peak bytes: allocated by PyTorch on this GPU, or resident in this process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(name: str) -> float | None:
    """Return a GPU's dense bfloat16 FLOP/s by its name in CUDA or Ray; None if unknown."""
    return next((peak for known, peak in _PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def _shape(weight: torch.nn.Parameter) -> torch.Size:
    """Return the full shape: ZeRO-3 keeps it only in `ds_shape`, 4-bit quantization only in `quant_state`."""
    whole = getattr(weight, "quant_state", None)
    shape: torch.Size = weight.shape if whole is None else whole.shape
    return getattr(weight, "ds_shape", shape)


def _size(weight: torch.nn.Parameter) -> int:
    return _shape(weight).numel()
