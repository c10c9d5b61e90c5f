"""LoRA (arXiv 2106.09685) and QLoRA through PEFT: few new weights beside the frozen student, merged at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from cgd_ray.config.training import LoraSection
from cgd_ray.storage.fingerprint import derived_seed
from cgd_ray.training.job import RefusedError

if TYPE_CHECKING:
    from peft import PeftModel


def with_adapter(model: PreTrainedModel, lora: LoraSection, seed: int) -> "PeftModel":
    """The model with new weights beside its linear layers, the same on every rank, and its own ones frozen.

    Raises:
        RefusedError: the model has no such layers.
    """
    for target in [] if isinstance(lora.targets, str) else lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name, _ in model.named_modules()):
            raise RefusedError(
                f"training.lora.targets: the student has no layer {target!r}. Fix: name what it has, or all-linear"
            )
    from peft import LoraConfig, get_peft_model  # seconds, which most trainings need not wait for

    torch.manual_seed(derived_seed(seed, "lora"))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    # DeepSpeed decides on types, and keeps fp32 masters of what is trained.
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise RefusedError(f"training.lora.targets: {' '.join(str(error).split())}") from error
    _require_tied_untouched(adapted)
    _keep_gradients_in_4_bits(adapted)
    return adapted


def _keep_gradients_in_4_bits(model: "PeftModel") -> None:
    """The first pass without gradients on a CPU, as a validation is, packs 4-bit weights for products that have none.

    For good: from then on bitsandbytes would pass no gradient on to the layers below.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _require_tied_untouched(model: "PeftModel") -> None:
    """One tensor is both the input and the output embedding: merged into it, an adapter of one would change both."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    from peft.tuners.tuners_utils import BaseTunerLayer

    if model.config.get_text_config().tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise RefusedError(
            "training.lora.targets: this student's input and output embeddings are one tensor, which an adapter of "
            "either would change for both once it is merged. Fix: leave the embeddings and lm_head out"
        )


def quantized(lora: LoraSection | None, device: torch.device) -> dict[str, object]:
    """Arguments with which the student is loaded in 4 bits, on its device at once, where the recipe asks for it."""
    if lora is None or lora.quantization is None:
        return {}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=lora.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def adapter_model(source: Path, lora: LoraSection) -> "PeftModel":
    """The student in a directory with its adapter, all without memory: configuration and names alone."""
    with torch.device("meta"):
        return with_adapter(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)), lora, seed=0)


def write_adapter(adapted: "PeftModel", weights: Mapping[str, torch.Tensor], name: str, folder: Path) -> None:
    """Write the trained adapter as PEFT reads it, in fp32.

    Args:
        adapted: of `adapter_model`; it takes the weights.
        weights: the adapter's, by the names that they have in it.
        name: what the recipe calls the student; the adapter names it as its base.
        folder: where it is written.
    """
    adapted.load_state_dict({key: weight.float() for key, weight in weights.items()}, strict=False, assign=True)
    adapted.peft_config["default"].base_model_name_or_path = name
    adapted.save_pretrained(folder, save_embedding_layers=False)


def merge_in_memory(source: Path, lora: LoraSection, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """The student with the trained weights added, in bfloat16: on the way there all of it lies in memory in fp32.

    Args:
        source: directory of the untrained student.
        lora: what the adapter is.
        weights: the adapter's, by the names that they have in the model of `with_adapter`.
    """
    model = with_adapter(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), lora, seed=0)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False)
    return model.merge_and_unload().to(torch.bfloat16)
