"""The DeepSpeed engine of one rank."""

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers.integrations import HfDeepSpeedConfig
from transformers.utils.logging import disable_progress_bar

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.loop.attention import load_student
from cgd_ray.training.loop.kernels import offloads, with_liger
from cgd_ray.training.lora import quantized, with_adapter
from cgd_ray.training.memory import reduce_bucket


def engine_config(training: TrainingSection, device: torch.device) -> dict[str, Any]:
    """Return DeepSpeed's configuration; the loop itself controls accumulation and the learning rate.

    Args:
        training: section of the recipe.
        device: of this rank.
    """
    on_cpu = device.type == "cpu"
    zero: dict[str, Any] = {
        "stage": training.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": not on_cpu,
    }
    if offloads(training, device):
        zero["offload_optimizer"] = {"device": training.offload, "pin_memory": True}
        if training.zero_stage == 3 and not on_cpu:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": _in_bfloat16(training)},
        "torch_autocast": {"enabled": training.precision == "bf16" and training.zero_stage == 0, "dtype": "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "steps_per_print": None,
    }


def _in_bfloat16(training: TrainingSection) -> bool:
    """Whether the forward pass has bfloat16 weights beside the fp32 master weights.

    Without ZeRO, DeepSpeed would also accumulate gradients in bfloat16; there the fp32 weights are cast on use.
    """
    return training.precision == "bf16" and training.zero_stage > 0


def start_engine(training: TrainingSection, model_path: Path, device: torch.device, seed: int) -> tuple[Any, bool]:
    """Load the student and wrap it in an engine; also return whether its loss is fused with the output layer.

    The default process group must exist.

    Master weights and optimiser states are fp32; with `bf16` the forward pass uses copies rounded to bfloat16.

    Raises:
        RefusedError: this student does not support a setting of the recipe.
    """
    config = engine_config(training, device)
    _quieten()
    if device.type == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce at the first start, which takes 38 s and a C++ compiler.
        # At the sizes that a CPU can train, gloo does as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Under ZeRO-3 `from_pretrained` shards the weights as it reads them, as long as this object exists.
    sharding = HfDeepSpeedConfig(config) if training.zero_stage == 3 else None
    model = load_student(
        model_path,
        training,
        device,
        dtype=torch.bfloat16 if _in_bfloat16(training) else torch.float32,
        **quantized(training.lora, device),
    )
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if training.lora:
        model = with_adapter(model, training.lora, seed)
    fuses_loss = training.liger and with_liger(model, training)
    # A parameter sharded by ZeRO-3 is empty, and has its size in `ds_numel`.
    sizes = (getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters() if weight.requires_grad)
    config["zero_optimization"]["reduce_bucket_size"] = reduce_bucket(sum(sizes), on_gpu=device.type != "cpu")
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=_optimizer(training, model.named_parameters(), device),
        config=config,
        dist_init_required=False,
    )
    del sharding
    engine.train()
    return engine, fuses_loss


def apply_step(engine: Any, rate: float) -> float:
    """Clip, update the weights at this learning rate, clear the gradients; return the gradient norm before clipping."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    norm = None
    if engine.zero_optimization_stage() == 0:
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)


def _quieten() -> None:
    """Keep the libraries' progress bars, banners and a warning per backward pass out of the run's log."""
    disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*is deprecated", category=FutureWarning)


def _optimizer(
    training: TrainingSection, parameters: Iterable[tuple[str, torch.nn.Parameter]], device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW with decay on matrices only: norms and biases should not shrink to zero."""
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for _, parameter in parameters:
        if not parameter.requires_grad:
            continue
        # A parameter sharded by ZeRO-3 has its full shape only in `ds_shape`.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (decayed if len(shape) > 1 else plain).append(parameter)
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, training.weight_decay), (plain, 0.0))
        if members
    ]
    if offloads(training, device):
        adam: torch.optim.Optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, lr=training.learning_rate)
        return adam
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
