"""How much memory training takes, from the model's configuration alone: no weight is read, no GPU is needed."""

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
_STATES = 3  # master weights and two moments: what a checkpoint holds
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes: 4 bits, a scale of 8 bits for 64 of them, one of fp32 for 256 of those
SHARD_BYTES = 4_000_000_000
"""Of a file of a merged student, which is made in memory; one weight may be larger."""
_LIVE = 1_000_000_000  # parameters of other ranks that ZeRO-3 holds at most, DeepSpeed's default


class NoEstimateError(CgdError):
    """This student's passes cannot be told without running them."""


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
    widest: int
    """Parameters of the largest one of all."""
    outside: int
    """Bytes that all else keeps, the logits and their gradients above all."""
    flops: Flops | None
    """None for a mixture of experts."""

    def activations(self, *, checkpointed: bool) -> int:
        """Bytes at the peak of one pass."""
        kept = self.layers * self.layer_input + self.layer if checkpointed else self.layers * self.layer
        return kept + self.outside

    @property
    def saved(self) -> int:
        """Bytes that gradient checkpointing leaves free."""
        return self.activations(checkpointed=False) - self.activations(checkpointed=True)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    device: float
    host: float


def model_sizes(folder: Path, training: TrainingSection, lengths: Ids, supervised: Ids) -> ModelSizes:
    """Sizes of the student in a directory (its weights need not be there) in the longest pass.

    A forward pass over tensors without memory says what is kept for the backward pass.

    Args:
        folder: of the student.
        training: the recipe's.
        lengths: [rows] tokens of each; one that is longer than the recipe's passes is a pass.
        supervised: [rows] supervised tokens of each.

    Raises:
        NoEstimateError: this architecture needs values, as experts do whose weights are in fp32.
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
    """Elements that ZeRO reduces at a time, of so many parameters with a gradient.

    Buffers of them are allocated whole: 1 GB at DeepSpeed's default, more than a small model or an adapter itself.
    """
    return min(trained, 500_000_000 if on_gpu else 50_000_000)


def export_memory(sizes: ModelSizes, training: TrainingSection) -> float:
    """Bytes that the first worker's host holds beside what training holds there, as the student is exported.

    A student that was trained whole is gathered in bfloat16. An adapter is gathered, and merged file by file: one file,
    which safetensors copies as it writes it, and one weight in fp32 with what is added to it.
    """
    if training.lora is None:
        return _HALF * sizes.trained
    adapter = (_HALF + _SINGLE) * sizes.trained
    if sizes.flops is None:  # experts are merged in memory
        return adapter + (_HALF + _SINGLE) * sizes.frozen
    return adapter + 2 * min(SHARD_BYTES, _HALF * sizes.frozen) + (_HALF + 2 * _SINGLE) * sizes.widest


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


def _casts(training: TrainingSection) -> bool:
    """Whether weights in fp32 are rounded as they are used."""
    return training.precision == "bf16" and training.zero_stage == 0


def _weights(sizes: ModelSizes, training: TrainingSection) -> tuple[float, float]:
    """Bytes of a rank's weights of the forward pass, and of those of others that it has at times."""
    half, whole = _half(training), sizes.trained + sizes.frozen
    weights: float = half * (whole - sizes.quantized) + _NF4 * sizes.quantized
    if training.zero_stage == 3:
        return weights / training.workers, half * min(_LIVE, whole)
    if _casts(training):
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
    kept = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return shapes(query.to(kept), key.to(kept), value.to(kept)).transpose(1, 2), None


def _kept(
    model: PreTrainedModel, training: TrainingSection, lengths: Ids, supervised: Ids
) -> tuple[int, int, int, int]:
    """Bytes kept by one layer, those of its input, the number of layers, bytes kept by all else."""
    capacity = training.micro_batch_tokens
    tokens, targets = largest_pass(lengths, supervised, training.batch_size, training.workers, capacity)
    layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    casts = _casts(training)
    mode = FakeTensorMode()  # as without memory as "meta", of which autocast knows nothing
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
    gradients = 2 * logits.nbytes  # of the logits, in fp32, and what they are made from
    # Autocast's copies of weights stay for the whole pass; `_weights` has them.
    inside, outside = (_HALF * _multiplied(part) if casts else 0 for part in (layers, model.get_output_embeddings()))
    return (counter.inside - inside) // len(layers), counter.input, len(layers), counter.outside - outside + gradients


def _without_memory(state: torch.Tensor) -> torch.Tensor:
    return torch.empty(state.shape, dtype=state.dtype, requires_grad=state.requires_grad)


def _multiplied(part: nn.Module) -> int:
    """Parameters with a gradient in the matrices of its linear layers."""
    weights = (module.weight for module in part.modules() if isinstance(module, nn.Linear))
    return sum(weight.numel() for weight in weights if weight.requires_grad)


class _Counter:
    """Bytes of distinct storages that autograd keeps, inside the layers and outside."""

    def __init__(self, states: Iterable[torch.Tensor]) -> None:
        self.inside = self.outside = self.input = 0
        self._is_inside = False
        # Kept alive: else another one may get a counted one's place.
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
