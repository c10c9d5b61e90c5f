"""Attention row by row gives what a mask gives, on several architectures, in the forward and the backward pass."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.attention import attend_by_row, loaded_with
from cgd_ray.training.loss import summed_loss
from cgd_ray.training.packing import PackedRows, join

CPU = torch.device("cpu")
BY_ROW, SDPA = TrainingSection(max_length=64), TrainingSection(max_length=64, attention="sdpa")
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "phi3", "olmo2", "gemma3_text", "granite", "smollm3"]


def model(architecture: str, training: TrainingSection, **changes: Any) -> Any:
    config = AutoConfig.for_model(architecture, **SIZES | changes)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=loaded_with(training, CPU)
    ).train()
    attend_by_row(made, training, CPU)
    return made


def pack() -> PackedRows:
    generator = np.random.default_rng(1)
    return join([(generator.integers(3, 128, size), size // 2) for size in (9, 17, 2, 30, 64)])


def require_same(one: Any, other: Any) -> None:
    losses = [summed_loss(each, pack(), CPU) for each in (one, other)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    mine, theirs = (torch.nn.utils.parameters_to_vector(p.grad for p in each.parameters()) for each in (one, other))
    assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_attend_as_under_a_mask(architecture: str) -> None:
    by_row, masked = model(architecture, BY_ROW), model(architecture, SDPA)
    assert (by_row.config._attn_implementation, masked.config._attn_implementation) == ("cgd_by_row", "sdpa")
    require_same(by_row, masked)


def test_under_gradient_checkpointing_too() -> None:
    by_row = model("llama", BY_ROW)
    by_row.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    require_same(by_row, model("llama", SDPA))


@pytest.mark.parametrize(("window", "implementation"), [(63, "sdpa"), (64, "cgd_by_row")])
def test_rows_that_may_be_longer_than_a_window_keep_the_mask(window: int, implementation: str) -> None:
    windowed = model("mistral", BY_ROW, sliding_window=window)
    assert windowed.config._attn_implementation == implementation
    require_same(windowed, model("mistral", SDPA, sliding_window=window))


def test_what_a_user_asks_for_is_taken() -> None:
    gpu = torch.device("cuda")
    assert loaded_with(SDPA, gpu) == loaded_with(TrainingSection(attention="by_row"), gpu) == "sdpa"
    assert loaded_with(TrainingSection(), gpu) == "flex_attention"  # flash-attn is not installed here
