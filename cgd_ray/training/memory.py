"""Estimate training memory from the model's configuration alone: no weights are read, no GPU is needed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.func import functional_call
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cgd_ray.compat.torch import FakeTensorMode
from cgd_ray.config.training import TrainingSection
from cgd_ray.errors import CgdError
from cgd_ray.training.dataset.packing import Ids, largest_pass
from cgd_ray.training.flops import Flops
from cgd_ray.training.loop.loss import UNSUPPORTED_ERRORS
from cgd_ray.training.lora import with_adapter

_ATTENTION = "cgd_shapes"
_HALF, _SINGLE = 2, 4  # bytes
_MOMENTS = 2
_STATES = 3  # master weights and two moments: the content of a checkpoint
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes: 4 bits, an 8-bit scale per 64 weights, an fp32 scale per 256 scales
SHARD_BYTES = 4_000_000_000
"""Maximum size of a merged student's file, which is built in memory; a single weight may be larger."""
_LIVE = 1_000_000_000  # maximum parameters of other ranks that ZeRO-3 holds, DeepSpeed's default


class NoEstimateError(CgdError):
    """The memory of this student's passes cannot be estimated without running them."""


@dataclass(frozen=True)
class ModelSizes:
    """Model sizes that determine memory."""

    trained: int
    """Parameters with a gradient."""
    frozen: int
    quantized: int
    """Frozen parameters in 4 bits."""
    layer: int
    """Bytes that one layer keeps for the backward pass of one packed pass."""
    layer_input: int
    """Bytes of a layer's input: all that the layer keeps under gradient checkpointing."""
    layers: int
    largest: int
    """Elements of the largest parameter with a gradient."""
    widest: int
    """Elements of the largest parameter of all."""
    outside: int
    """Bytes kept outside the layers, mainly the logits and their gradients."""
    flops: Flops | None
    """None for a mixture of experts."""

    def activations(self, *, checkpointed: bool) -> int:
        """Return the bytes of activations at the peak of one pass."""
        kept = self.layers * self.layer_input + self.layer if checkpointed else self.layers * self.layer
        return kept + self.outside

    @property
    def saved(self) -> int:
        """Bytes that gradient checkpointing saves."""
        return self.activations(checkpointed=False) - self.activations(checkpointed=True)


@dataclass(frozen=True)
class Memory:
    """Memory of one rank in bytes."""

    device: float
    host: float


def model_sizes(folder: Path, training: TrainingSection, lengths: Ids, supervised: Ids) -> ModelSizes:
    """Return the sizes of a student (its weights need not exist) in the longest pass.

    Measures what a forward pass over tensors without storage keeps for the backward pass.

    Args:
        folder: the student's directory.
        training: section of the recipe.
        lengths: [rows] tokens of each row; a row longer than the recipe's passes is a pass of its own.
        supervised: [rows] supervised tokens of each row.

    Raises:
        NoEstimateError: this architecture needs tensor values, as experts with fp32 weights do.
    """
    AttentionInterface.register(_ATTENTION, _attention)
    config = AutoConfig.from_pretrained(folder)
    weights = torch.bfloat16 if _half(training) == _HALF else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=weights, attn_implementation=_ATTENTION)
        if training.lora:
            model = with_adapter(model, training.lora, seed=0).to(weights)  # as DeepSpeed does
    flops = Flops.of(model)
    if flops is None and weights == torch.float32:
        raise NoEstimateError("experts with weights in fp32")
    try:
        layer, layer_input, layers, outside = _kept(model, training, lengths, supervised)
    except UNSUPPORTED_ERRORS as error:
        raise NoEstimateError(str(error)) from error
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return ModelSizes(
        trained=trained,
        frozen=sum(weight.numel() for weight in model.parameters()) - trained,
        quantized=_quantized(model) if training.lora and training.lora.quantization else 0,
        layer=layer,
        layer_input=layer_input,
        layers=layers,
        largest=max(weight.numel() for weight in model.parameters() if weight.requires_grad),
        widest=max(weight.numel() for weight in model.parameters()),
        outside=outside,
        flops=flops,
    )


def reduce_bucket(trained: int, *, on_gpu: bool) -> int:
    """Return the elements that ZeRO reduces at a time; `trained` is the number of parameters with a gradient.

    Their buffers are allocated in full: 1 GB at DeepSpeed's default, more than a small model or an adapter.
    """
    return min(trained, 500_000_000 if on_gpu else 50_000_000)


def export_memory(sizes: ModelSizes, training: TrainingSection) -> float:
    """Return the bytes that export adds to training's on the first worker's host.

    A student trained in full is gathered in bfloat16. An adapter is gathered and merged file by file. The merge holds
    one file, which safetensors copies on write, and one weight in fp32 with its update.
    """
    if training.lora is None:
        return _HALF * sizes.trained
    adapter = (_HALF + _SINGLE) * sizes.trained
    if sizes.flops is None:  # experts are merged in memory
        return adapter + (_HALF + _SINGLE) * sizes.frozen
    return adapter + 2 * min(SHARD_BYTES, _HALF * sizes.frozen) + (_HALF + 2 * _SINGLE) * sizes.widest


def memory(sizes: ModelSizes, training: TrainingSection, *, on_gpu: bool = True) -> Memory:
    """Return the memory of one of the recipe's workers, with its stage, offload and checkpointing."""
    stage = training.zero_stage
    placed = _placed(sizes, training)
    overlapping = 2 if stage == 2 and on_gpu else 1
    buffers = overlapping * _half(training) * reduce_bucket(sizes.trained, on_gpu=on_gpu) if stage > 1 else 0
    activations = sizes.activations(checkpointed=bool(training.gradient_checkpointing))
    return replace(placed, device=placed.device + buffers + activations)


def _half(training: TrainingSection) -> int:
    """Return the bytes per weight in the forward pass."""
    return _HALF if training.precision == "bf16" and training.zero_stage > 0 else _SINGLE


def _casts(training: TrainingSection) -> bool:
    """Whether fp32 weights are rounded on use."""
    return training.precision == "bf16" and training.zero_stage == 0


def _weights(sizes: ModelSizes, training: TrainingSection) -> tuple[float, float]:
    """Return the bytes of a rank's forward-pass weights, and of weights gathered temporarily from other ranks."""
    half, whole = _half(training), sizes.trained + sizes.frozen
    weights: float = half * (whole - sizes.quantized) + _NF4 * sizes.quantized
    if training.zero_stage == 3:
        return weights / training.workers, half * min(_LIVE, whole)
    if _casts(training):
        weights += _HALF * sizes.trained  # autocast keeps bfloat16 copies for the pass
    return weights, 0.0


def _placed(sizes: ModelSizes, training: TrainingSection) -> Memory:
    """Return the memory held between passes, on device or host according to the recipe's offload."""
    stage, workers, trained = training.zero_stage, training.workers, sizes.trained
    weights, gathered = _weights(sizes, training)
    share = trained / (workers if stage else 1)
    gradients = _SINGLE * (share if stage > 1 else trained)
    optimiser = (_MOMENTS + (1 if stage else 0)) * _SINGLE * share
    copy = _STATES * _SINGLE * share  # a checkpoint's, while it is written
    if training.offload == "cpu" and stage == 3:
        return Memory(gathered, weights + optimiser + gradients + copy)
    if training.offload == "cpu":
        # The device still accumulates gradients; the host also holds a rounded copy of its share.
        largest, moved = _HALF * sizes.largest, (_SINGLE + _half(training)) * share
        return Memory(weights + gradients + largest, optimiser + moved + largest + copy)
    return Memory(weights + gathered + gradients + optimiser, copy)


def _quantized(model: PreTrainedModel) -> int:
    """Return the parameters of linear layers, except output and adapter, which bitsandbytes does not quantize."""
    head = model.get_output_embeddings()
    layers = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)


class _Shapes(torch.autograd.Function):
    """Attention that computes nothing, but keeps the tensors that a fused kernel keeps."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, output.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


def _attention(
    _module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, None]:
    shapes: Callable[..., torch.Tensor] = _Shapes.apply
    kept = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return shapes(query.to(kept), key.to(kept), value.to(kept)).transpose(1, 2), None


def _kept(
    model: PreTrainedModel, training: TrainingSection, lengths: Ids, supervised: Ids
) -> tuple[int, int, int, int]:
    """Return bytes kept by one layer, bytes of its input, the number of layers, and bytes kept outside them."""
    capacity = training.micro_batch_tokens
    tokens, targets = largest_pass(lengths, supervised, training.batch_size, training.workers, capacity)
    layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    casts = _casts(training)
    mode = FakeTensorMode()  # without storage, like "meta", which autocast does not support
    with mode:
        states = {name: _without_memory(state) for name, state in (*model.named_parameters(), *model.named_buffers())}
    counter = _Counter(states.values())
    handles = [layers[0].register_forward_pre_hook(counter.enter), layers[-1].register_forward_hook(counter.leave)]
    with mode, torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
        inputs = {
            "input_ids": torch.zeros(1, tokens, dtype=torch.long),
            "position_ids": torch.arange(tokens)[None],
            "logits_to_keep": torch.arange(targets),
            "use_cache": False,
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            output = functional_call(model, states, kwargs=inputs)
        logits = output.logits.squeeze(0).float()
        functional.cross_entropy(logits, torch.zeros(targets, dtype=torch.long), reduction="sum")
    for handle in handles:
        handle.remove()
    gradients = 2 * logits.nbytes  # of the fp32 logits, and of what they are computed from
    # Autocast keeps its copies of weights for the whole pass; `_weights` counts them.
    inside, outside = (_HALF * _multiplied(part) if casts else 0 for part in (layers, model.get_output_embeddings()))
    return (counter.inside - inside) // len(layers), counter.input, len(layers), counter.outside - outside + gradients


def _without_memory(state: torch.Tensor) -> torch.Tensor:
    return torch.empty(state.shape, dtype=state.dtype, requires_grad=state.requires_grad)


def _multiplied(part: nn.Module) -> int:
    """Return the number of parameters with a gradient in the matrices of linear layers."""
    weights = (module.weight for module in part.modules() if isinstance(module, nn.Linear))
    return sum(weight.numel() for weight in weights if weight.requires_grad)


class _Counter:
    """Counts the bytes of distinct storages that autograd keeps, inside and outside the layers."""

    def __init__(self, states: Iterable[torch.Tensor]) -> None:
        self.inside = self.outside = self.input = 0
        self._is_inside = False
        # References keep counted storages alive: otherwise a new one may get the same id.
        self._seen = {id(storage): storage for storage in (state.untyped_storage() for state in states)}

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
