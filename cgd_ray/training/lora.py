"""LoRA (arXiv 2106.09685) and QLoRA through PEFT: a few new weights beside the frozen student, merged at the end."""

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
    """Return the model with new weights beside its linear layers, the same on every rank, and its own frozen.

    Raises:
        RefusedError: the model has no such layers, or the adapter would change tied embeddings.
    """
    for target in [] if isinstance(lora.targets, str) else lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name, _ in model.named_modules()):
            raise RefusedError(
                f"training.lora.targets: the student has no layer {target!r}. Fix: name what it has, or all-linear"
            )
    from peft import LoraConfig, get_peft_model  # takes seconds, which most trainings can avoid

    torch.manual_seed(derived_seed(seed, "lora"))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    # DeepSpeed sets the types, and keeps fp32 master weights of what is trained.
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise RefusedError(f"training.lora.targets: {' '.join(str(error).split())}") from error
    _require_tied_untouched(adapted)
    _keep_gradients_in_4_bits(adapted)
    return adapted


def _keep_gradients_in_4_bits(model: "PeftModel") -> None:
    """Disable the packing of 4-bit weights that blocks gradients on CPU.

    bitsandbytes packs them in the first pass without gradients, such as a validation, and never unpacks them. From then
    on, no gradient would reach the layers below.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _require_tied_untouched(model: "PeftModel") -> None:
    """Refuse an adapter of a tied embedding: merged, an adapter of the input or the output would change both."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    from peft.tuners.tuners_utils import BaseTunerLayer

    if model.config.get_text_config().tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise RefusedError(
            "training.lora.targets: this student's input and output embeddings are one tensor, which an adapter of "
            "either would change for both once it is merged. Fix: leave the embeddings and lm_head out"
        )


def quantized(lora: LoraSection | None, device: torch.device) -> dict[str, object]:
    """Return the arguments to load the student in 4 bits directly onto its device, if the recipe asks for it."""
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
    """Return the student in a directory with its adapter, without weight memory: configuration and names only."""
    with torch.device("meta"):
        return with_adapter(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)), lora, seed=0)


def write_adapter(adapted: "PeftModel", weights: Mapping[str, torch.Tensor], name: str, folder: Path) -> None:
    """Write the trained adapter in PEFT's format, in fp32.

    Args:
        adapted: from `adapter_model`; the weights are loaded into it.
        weights: the adapter's weights by their names in `adapted`.
        name: the recipe's name of the student; the adapter records it as its base.
        folder: folder to write to.
    """
    adapted.load_state_dict({key: weight.float() for key, weight in weights.items()}, strict=False, assign=True)
    adapted.peft_config["default"].base_model_name_or_path = name
    adapted.save_pretrained(folder, save_embedding_layers=False)


def merge_in_memory(source: Path, lora: LoraSection, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Return the student with the trained weights merged, in bfloat16; the merge holds all of it in memory in fp32.

    Args:
        source: directory of the untrained student.
        lora: settings of the adapter.
        weights: the adapter's weights by their names in the model of `with_adapter`.
    """
    model = with_adapter(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), lora, seed=0)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False)
    return model.merge_and_unload().to(torch.bfloat16)
