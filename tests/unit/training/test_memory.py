"""What a pass keeps for its backward pass, told without memory, against what PyTorch keeps as it runs."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Params4bit
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from cgd_ray.config.training import LoraSection, TrainingSection
from cgd_ray.training.dataset.packing import join
from cgd_ray.training.loop.loss import summed_loss
from cgd_ray.training.lora import quantized, with_adapter
from cgd_ray.training.memory import NoEstimateError, export_memory, memory, model_sizes
from tests.unit.training.tiny import write_tiny_model

LENGTH, SUPERVISED = 256, 64
ROW = np.array([64]), np.array([32])
GIB = 2**30


@pytest.mark.parametrize("lora", [None, LoraSection(rank=4)])
@pytest.mark.parametrize(("precision", "stage"), [("fp32", 2), ("bf16", 2), ("bf16", 0)])
def test_activations_are_those_that_are_kept(
    tiny_dir: Path, lora: LoraSection | None, precision: Literal["fp32", "bf16"], stage: Literal[0, 2]
) -> None:
    training = TrainingSection(precision=precision, zero_stage=stage, micro_batch_tokens=LENGTH, lora=lora)
    told = model_sizes(tiny_dir, training, np.array([LENGTH]), np.array([SUPERVISED]))
    casts = (precision, stage) == ("bf16", 0)
    dtype = torch.float32 if casts or precision == "fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=dtype)
    if lora:
        model = with_adapter(model, lora, seed=0).to(dtype)
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        row = join([(np.arange(LENGTH), LENGTH - SUPERVISED)])
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            summed_loss(model, row, torch.device("cpu"))
    gradients = 2 * SUPERVISED * model.config.vocab_size * 4
    trained = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    copies = sum(2 * weight.numel() for weight in trained if weight.requires_grad) if casts else 0
    measured = sum(storage.nbytes() for storage in kept.values()) + gradients - copies
    assert told.activations(checkpointed=False) == pytest.approx(measured, rel=0.05)
    assert told.trained == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert told.layer_input == LENGTH * 64 * dtype.itemsize


def test_a_pass_of_targets_alone_is_told(tiny_dir: Path) -> None:
    training = TrainingSection(micro_batch_tokens=LENGTH)
    few, many = np.full(100, 8), np.array([*[8] * 99, LENGTH - 8])
    even, odd = (model_sizes(tiny_dir, training, np.full(100, LENGTH), supervised) for supervised in (few, many))
    more = (LENGTH - 16) * 400 * 4
    assert odd.outside - even.outside >= 3 * more  # logits, in fp32, their softmax and their gradient


def test_experts_are_told_in_bfloat16_only(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    MixtralConfig(**small, num_hidden_layers=2, vocab_size=400).save_pretrained(tmp_path)
    training = TrainingSection(micro_batch_tokens=64, zero_stage=2, precision="bf16")
    sizes = model_sizes(tmp_path, training, *ROW)
    assert sizes.flops is None
    assert sizes.layer > sizes.layer_input == 64 * 64 * 2
    with pytest.raises(NoEstimateError, match="experts with weights in fp32"):
        model_sizes(tmp_path, training.model_copy(update={"zero_stage": 0}), *ROW)


def test_sharding_and_offload_move_what_they_say(tiny_dir: Path) -> None:
    def told(**training: object) -> tuple[float, ...]:
        section = TrainingSection.model_validate(
            {"workers": 4, "micro_batch_tokens": 64, "precision": "bf16"} | training
        )
        needed = memory(sizes, section)
        return (needed.device - needed_by_pass, needed.host)

    sizes = model_sizes(tiny_dir, TrainingSection(micro_batch_tokens=64, precision="bf16"), *ROW)
    needed_by_pass = sizes.activations(checkpointed=False)
    trained = sizes.trained
    copy = 12 * trained  # of a checkpoint
    assert told(zero_stage=0) == (18 * trained, copy)  # fp32 weights, gradients, moments, and autocast's copy
    assert told(zero_stage=1) == ((2 + 4 + 12 / 4) * trained, copy / 4)
    assert told(zero_stage=2) == ((2 + 4 / 4 + 12 / 4 + 2 * 2) * trained, copy / 4)  # the last are two buckets
    largest = 2 * sizes.largest
    moved = (2 + 4 / 4 + 2 * 2) * trained + largest, (16 + 2) / 4 * trained + copy / 4 + largest
    assert told(zero_stage=2, offload="cpu") == moved
    assert told(zero_stage=3) == ((2 / 4 + 2 + 4 / 4 + 12 / 4 + 2) * trained, copy / 4)
    assert told(zero_stage=3, offload="cpu") == ((2 + 2) * trained, (2 / 4 + 16 / 4) * trained + copy / 4)


def test_the_export_is_told(tiny_dir: Path, tmp_path: Path) -> None:
    whole, lora = (TrainingSection(micro_batch_tokens=64, lora=lora) for lora in (None, LoraSection(rank=4)))
    trained = model_sizes(tiny_dir, whole, *ROW)
    assert export_memory(trained, whole) == 2 * trained.trained
    shape = {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64}
    config = LlamaConfig(**shape, num_key_value_heads=8, vocab_size=128_256)
    config.save_pretrained(tmp_path)
    large = model_sizes(tmp_path, lora, *ROW)
    assert large.widest == 8192 * 128_256
    assert 10 * GIB < export_memory(large, lora) < 20 * GIB  # of 70B parameters; in memory it were 390 GB


def test_four_bits_are_told(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, hidden_size=256, intermediate_size=512)
    lora = LoraSection(rank=4, quantization="nf4")
    training = TrainingSection(lora=lora, micro_batch_tokens=64, zero_stage=0)
    sizes = model_sizes(tmp_path, training, *ROW)
    options = quantized(lora, torch.device("cpu"))
    model = with_adapter(AutoModelForCausalLM.from_pretrained(tmp_path, **options), lora, seed=0)
    weights = [weight for weight in model.parameters() if isinstance(weight, Params4bit)]
    states = [weight.quant_state for weight in weights]
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    in_half = memory(replace(sizes, quantized=0), training).device - memory(sizes, training).device
    assert sizes.quantized == sum(state.shape.numel() for state in states)
    saved = 4 * sizes.quantized - sum(weight.nbytes for weight in weights) - scales
    assert in_half == pytest.approx(saved, rel=0.01)
