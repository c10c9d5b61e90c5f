"""Faster layers: Liger's fused Triton kernels, and torch.compile.

Liger (arXiv 2410.10989) has kernels for a layer's norms, positions and gates, and for the loss. The loss kernel
includes the output layer, so the full logits never exist. For GPUs; Triton's interpreter runs them on CPU for tests.
"""

import os
import shutil
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.dataset.packing import join
from cgd_ray.training.job import RefusedError
from cgd_ray.training.loop.attention import attends_by_row, wanted
from cgd_ray.training.loop.loss import summed_loss

LAYERS = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True}
"""Kernels that replace a layer's own functions; an architecture uses those that apply to it."""

_TOLERANCE = 2e-2  # relative to the loss: in bfloat16, the kernels round at other points


def offloads(training: TrainingSection, device: torch.device) -> bool:
    """Whether states are offloaded to the host: never if the device is the host."""
    return training.offload == "cpu" and device.type != "cpu"


def lacking(training: TrainingSection, device: torch.device) -> str | None:
    """Return the recipe's first requirement that this machine lacks, with the fix; None if it lacks none."""
    if training.liger and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "training.liger: its kernels are for GPUs; leave it out on CPU"
    if training.liger and find_spec("liger_kernel") is None:
        return "training.liger: install the package liger-kernel (cgd-ray[liger]) where training runs"
    compiler = os.environ.get("CXX", "g++")
    compiled = "compile" if training.compile else "offload" if offloads(training, device) else None
    if compiled and shutil.which(compiler) is None:
        return (
            f"training.{compiled}: there is no C++ compiler {compiler!r} on a machine that trains (Debian's g++; CXX "
            "names another one); install it, or leave it out"
        )
    if device.type == "cuda" and wanted(training, device)[0] == "flex_attention" and not _has_c_compiler():
        return (
            "training.attention: flex_attention is compiled, and there is no C compiler (gcc, clang, or what CC names) "
            "on a machine that trains; install it, or flash-attn, or take the slower sdpa"
        )
    return None


def _has_c_compiler() -> bool:
    """Whether Triton finds a C compiler for its kernel launchers."""
    named = os.environ.get("CC")
    return any(shutil.which(name) for name in ([named] if named else ["gcc", "clang"]))


def with_liger(model: PreTrainedModel, training: TrainingSection) -> bool:
    """Replace the model's own functions with the kernels; return whether the loss is among them.

    The loss is not fused under ZeRO-3, which gathers weights only for their own layer's forward pass. Nor is it fused
    with an adapter of the output layer: the kernel would use the frozen weights only.

    Raises:
        RefusedError: the package has no kernels for this architecture.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from peft.tuners.tuners_utils import BaseTunerLayer  # takes seconds, like the next
    from transformers.integrations.liger import apply_liger_kernel

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RefusedError(f"training.liger: Liger has no kernels for {kind}. Fix: leave it out")
    fuses_loss = training.zero_stage < 3 and not isinstance(model.get_output_embeddings(), BaseTunerLayer)
    apply_liger_kernel(model, LAYERS | {"cross_entropy": False, "fused_linear_cross_entropy": fuses_loss})
    return fuses_loss


def compile_layers(model: PreTrainedModel, training: TrainingSection) -> None:
    """Compile each layer at its first run, for passes of any length.

    Layers are alike: compiled one by one, they share one compilation, whose time does not grow with their number.

    Raises:
        RefusedError: nothing would be compiled.
    """
    if training.gradient_checkpointing and attends_by_row(model):
        raise RefusedError(
            "training.compile: under gradient_checkpointing a layer whose rows attend one by one is not compiled. "
            "Fix: leave either out, or take attention: sdpa"
        )
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RefusedError("training.compile: this architecture does not name its layers. Fix: leave it out")
    for layer in layers:
        layer.compile(dynamic=True)


@torch.no_grad()
def require_same_loss(engine: torch.nn.Module, vocabulary: int, device: torch.device) -> None:
    """Check on the model itself that the fused loss matches the loss of its logits.

    Raises:
        RefusedError: the architecture has operations between its last layer and its logits that the kernel omits.
    """
    ids = torch.randint(vocabulary, (48,), generator=torch.Generator().manual_seed(0)).numpy()
    rows = join([(ids[:20], 4), (ids[20:], 9)])
    engine.eval()
    fused, plain = (summed_loss(engine, rows, device, fused=fused).item() for fused in (True, False))
    engine.train()
    if abs(fused - plain) > _TOLERANCE * abs(plain):
        raise RefusedError(
            f"training.liger: the fused loss of this student is another one ({fused:.4g}, {plain:.4g} without it). "
            "Fix: leave it out"
        )
