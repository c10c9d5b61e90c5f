"""What a step costs by the mathematics of the model, and what share of the device's peak that was."""

import re
import resource
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from cgd_ray.training.dataset.packing import Ids

# Dense bfloat16 FLOP/s by a word of the device's name, from the vendor's data sheets; the first match counts.
_PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "GH200": 989e12, "H200": 989e12, "B200": 2250e12,
    "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12,
}  # fmt: skip
_FORWARD, _FULL_BACKWARD, _FROZEN_BACKWARD = 2, 4, 2  # per parameter and token: frozen ones need no gradient


@dataclass(frozen=True)
class Flops:
    """The sizes that decide."""

    body: int
    """Parameters of the matrices that every token goes through."""
    head: int
    """Parameters of the output layer, which only supervised positions go through."""
    attention: int
    """Layers times width of all query heads."""
    is_frozen: bool
    """Whether only an adapter is trained."""

    @staticmethod
    def of(model: PreTrainedModel) -> "Flops | None":
        """The model's, which may be sharded by ZeRO-3 and have an adapter; None for a mixture of experts."""
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
        """Forward and backward over rows of these lengths; attention is causal, and within a row."""
        backward = _FROZEN_BACKWARD if self.is_frozen else _FULL_BACKWARD
        matrices = (_FORWARD + backward) * (self.body * float(lengths.sum()) + self.head * float(supervised.sum()))
        # Two products (scores, values) of 2 FLOPs over half a square of positions, and twice that backwards.
        return matrices + 6 * self.attention * float((lengths.astype(float) ** 2).sum())


class Yardstick:
    """A model on a device: how much of the device's peak a step reaches."""

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._flops = Flops.of(model) if self._peak else None

    def mfu(self, lengths: Ids, supervised: Ids, device_seconds: float) -> float | None:
        """Model FLOPs utilisation over rows of these lengths; None where sizes or peak are not known."""
        if self._peak is None or self._flops is None:
            return None
        return self._flops.of_rows(lengths, supervised) / (device_seconds * self._peak)


def peak_memory(device: torch.device) -> int:
    """Bytes: most that PyTorch had allocated on this GPU, or that this process had on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU, by what the device or Ray calls it; None where it is not known."""
    return next((peak for known, peak in _PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def _shape(weight: torch.nn.Parameter) -> torch.Size:
    """A parameter that ZeRO-3 has sharded shows its full shape in `ds_shape` only, one in 4 bits in `quant_state`."""
    whole = getattr(weight, "quant_state", None)
    shape: torch.Size = weight.shape if whole is None else whole.shape
    return getattr(weight, "ds_shape", shape)


def _size(weight: torch.nn.Parameter) -> int:
    return _shape(weight).numel()
