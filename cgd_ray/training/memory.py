"""How much memory training takes, from the model's configuration alone: no weight is read, no GPU is needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.adapters import with_adapter
from cgd_ray.training.flops import Flops
from cgd_ray.training.packing import Ids

_ATTENTION = "cgd_shapes"
_HALF, _SINGLE = 2, 4  # bytes
_MOMENTS = 2
_STATES = 3  # master weights and two moments: what a checkpoint holds
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes: 4 bits, a scale of 8 bits for 64 of them, one of fp32 for 256 of those
SWAPPED_AT_ONCE = 100_000_000
"""Parameters of which a rank has states from NVMe in memory; its part of them at most."""
_SWAP_BUFFERS = 4  # of so many parameters in fp32: DeepSpeed pins them for weights, moments and gradients
_LIVE = 1_000_000_000  # parameters of other ranks that ZeRO-3 holds at most, DeepSpeed's default


@dataclass(frozen=True)
class ModelSizes:
    """What of a model decides on memory."""

    trained: int
    """Parameters with a gradient."""
    frozen: int
    quantized: int
    """Of the frozen ones, those in 4 bits."""
    layer: int
    """Bytes that one layer keeps for the backward pass of one packed pass."""
    layer_input: int
    """Bytes of what goes into a layer: all that it keeps under gradient checkpointing."""
    layers: int
    largest: int
    """Parameters of the largest one with a gradient."""
    outside: int
    """Bytes that all else keeps, the logits and their gradients above all."""
    flops: Flops | None
    """None for a mixture of experts."""

    def activations(self, *, checkpointed: bool) -> int:
        """Bytes at the peak of one pass."""
        kept = self.layers * self.layer_input + self.layer if checkpointed else self.layers * self.layer
        return kept + self.outside


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    device: float
    host: float
    disk: float = 0.0
    """On the machine itself, of `offload: nvme`."""


def model_sizes(folder: Path, training: TrainingSection, lengths: Ids, supervised: Ids) -> ModelSizes:
    """Sizes of the student in a directory (its weights need not be there) in the longest pass.

    A forward pass on PyTorch's device without memory says what is kept for the backward pass.

    Args:
        folder: of the student.
        training: the recipe's.
        lengths: [rows] tokens of each; one that is longer than the recipe's passes is a pass.
        supervised: [rows] supervised tokens of each.
    """
    AttentionInterface.register(_ATTENTION, _attention)
    half = torch.bfloat16 if training.precision == "bf16" else torch.float32
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=half, attn_implementation=_ATTENTION)
        if training.lora:
            model = with_adapter(model, training.lora, seed=0)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    tokens = max(training.micro_batch_tokens, int(lengths.max(initial=0)))
    targets = max(1, round(tokens * float(supervised.sum()) / max(1, int(lengths.sum()))))
    layer, layer_input, layers, outside = _kept(model, tokens, targets)
    return ModelSizes(
        trained=trained,
        frozen=sum(weight.numel() for weight in model.parameters()) - trained,
        quantized=_quantized(model) if training.lora and training.lora.quantization else 0,
        layer=layer,
        layer_input=layer_input,
        layers=layers,
        largest=max(weight.numel() for weight in model.parameters() if weight.requires_grad),
        outside=outside,
        flops=Flops.of(model),
    )


def reduce_bucket(trained: int, *, on_gpu: bool) -> int:
    """Elements that ZeRO reduces at a time, of so many parameters with a gradient.

    Buffers of them are allocated whole: 1 GB at DeepSpeed's default, more than a small model or an adapter itself.
    """
    return min(trained, 500_000_000 if on_gpu else 50_000_000)


def memory(sizes: ModelSizes, training: TrainingSection, *, on_gpu: bool = True) -> Memory:
    """What one of the recipe's workers holds, with its stage, offload and checkpointing."""
    stage = training.zero_stage
    placed = _placed(sizes, training)
    overlapping = 2 if stage == 2 and on_gpu else 1
    buffers = overlapping * _half(training) * reduce_bucket(sizes.trained, on_gpu=on_gpu) if stage > 1 else 0
    activations = sizes.activations(checkpointed=bool(training.gradient_checkpointing))
    return replace(placed, device=placed.device + buffers + activations)


def _half(training: TrainingSection) -> int:
    """Bytes of a weight of the forward pass."""
    return _HALF if training.precision == "bf16" and training.zero_stage > 0 else _SINGLE


def _weights(sizes: ModelSizes, training: TrainingSection) -> tuple[float, float]:
    """Bytes of a rank's weights of the forward pass, and of those of others that it has at times."""
    half, whole = _half(training), sizes.trained + sizes.frozen
    weights: float = half * (whole - sizes.quantized) + _NF4 * sizes.quantized
    if training.zero_stage == 3:
        return weights / training.workers, half * min(_LIVE, whole)
    if training.precision == "bf16" and training.zero_stage == 0:
        weights += _HALF * sizes.trained  # which autocast rounds to bfloat16, and keeps for the pass
    return weights, 0.0


def _placed(sizes: ModelSizes, training: TrainingSection) -> Memory:
    """What is held between passes, where the recipe's offload puts it."""
    stage, workers, trained = training.zero_stage, training.workers, sizes.trained
    weights, gathered = _weights(sizes, training)
    share = trained / (workers if stage else 1)
    gradients = _SINGLE * (share if stage > 1 else trained)
    optimiser = (_MOMENTS + (1 if stage else 0)) * _SINGLE * share
    copy = _STATES * _SINGLE * share  # a checkpoint's, while it is written
    if training.offload == "nvme":  # from where checkpoints are written, too
        buffers = _SWAP_BUFFERS * _SINGLE * min(SWAPPED_AT_ONCE, share)
        return Memory(gathered, weights + buffers, optimiser + gradients)
    if training.offload == "cpu" and stage == 3:
        return Memory(gathered, weights + optimiser + gradients + copy)
    if training.offload == "cpu":
        # The device adds gradients up all the same; the host has a rounded copy of its share, too.
        largest, moved = _HALF * sizes.largest, (_SINGLE + _half(training)) * share
        return Memory(weights + gradients + largest, optimiser + moved + largest + copy)
    return Memory(weights + gathered + gradients + optimiser, copy)


def _quantized(model: PreTrainedModel) -> int:
    """Parameters of linear layers but those of the output and of the adapter, which bitsandbytes leaves as they are."""
    head = model.get_output_embeddings()
    layers = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)


class _Shapes(torch.autograd.Function):
    """Attention that computes nothing, and keeps what a fused kernel keeps."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, output.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


def _attention(
    _module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, None]:
    shapes: Callable[..., torch.Tensor] = _Shapes.apply
    return shapes(query, key, value).transpose(1, 2), None


def _kept(model: nn.Module, tokens: int, supervised: int) -> tuple[int, int, int, int]:
    """Bytes kept by one layer, those of its input, the number of layers, bytes kept by all else."""
    layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    counter = _Counter(model)
    handles = [layers[0].register_forward_pre_hook(counter.enter), layers[-1].register_forward_hook(counter.leave)]
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
        output = model(
            input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"),
            position_ids=torch.arange(tokens, device="meta")[None],
            logits_to_keep=torch.arange(supervised, device="meta"),
            use_cache=False,
        )
        logits = output.logits.squeeze(0).float()
        functional.cross_entropy(logits, torch.zeros(supervised, dtype=torch.long, device="meta"), reduction="sum")
    for handle in handles:
        handle.remove()
    gradients = 2 * logits.nbytes  # of the logits, in fp32, and what they are made from
    return counter.inside // len(layers), counter.input, len(layers), counter.outside + gradients


class _Counter:
    """Bytes of distinct storages that autograd keeps, inside the layers and outside."""

    def __init__(self, model: nn.Module) -> None:
        self.inside = self.outside = self.input = 0
        self._is_inside = False
        # Kept alive: else another one may get a counted one's place.
        self._seen = {id(storage): storage for storage in (weight.untyped_storage() for weight in model.parameters())}

    def enter(self, _module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._is_inside = True
        self.input = arguments[0].nbytes

    def leave(self, *_: object) -> None:
        self._is_inside = False

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen[id(storage)] = storage
            if self._is_inside:
                self.inside += storage.nbytes()
            else:
                self.outside += storage.nbytes()
        return tensor
