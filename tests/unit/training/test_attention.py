"""Attention row by row gives what a mask gives, on several architectures, in the forward and the backward pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, modeling_flash_attention_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.dataset.packing import PackedRows, join, padded
from cgd_ray.training.job import RefusedError
from cgd_ray.training.loop.attention import load_student, require_rows_fit, resolve_attention, wanted
from cgd_ray.training.loop.loss import packed_logits, summed_loss

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


class Wrapped(torch.nn.Module):
    """As DeepSpeed's engine wraps a model."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def model(architecture: str, training: TrainingSection, **changes: Any) -> Any:
    config = AutoConfig.for_model(architecture, **SIZES | changes)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=wanted(training, CPU)[0]
    ).train()
    resolve_attention(Wrapped(made), training, CPU)
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


def test_a_deep_student_in_bfloat16_does_too() -> None:
    """Thirty layers carry what each rounds otherwise to a tenth of the logits' standard deviation and more."""
    config = AutoConfig.for_model("llama", **SIZES | {"num_hidden_layers": 30})
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    masked = packed_logits(made, pack(), CPU).float()
    resolve_attention(Wrapped(made), BY_ROW, CPU)
    assert made.config._attn_implementation == "cgd_by_row"
    by_row = packed_logits(made, pack(), CPU).float()
    assert (by_row - masked).abs().max() > 0.1 * masked.std()  # else this proves nothing
    assert (by_row - masked).abs().mean() < 0.1 * masked.std()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_beside_the_mask_keeps_the_mask(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that prefers near tokens, a little."""

    def biased(*arguments: Any, **options: Any) -> torch.Tensor:
        mask = sdpa_mask(*arguments, **options)
        places = torch.arange(mask.shape[-1])
        bias = -0.05 * (places[:, None] - places[None, :]).abs().to(dtype)
        return torch.where(mask, bias, torch.finfo(dtype).min)

    monkeypatch.setattr("cgd_ray.training.loop.attention.sdpa_mask", biased)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **SIZES), dtype=dtype, attn_implementation="sdpa"
    )
    resolve_attention(Wrapped(made), BY_ROW, CPU)
    assert made.config._attn_implementation == "sdpa"


def test_under_gradient_checkpointing_too() -> None:
    by_row = model("llama", BY_ROW)
    by_row.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    require_same(by_row, model("llama", SDPA))


@pytest.mark.parametrize(("window", "implementation"), [(63, "sdpa"), (64, "cgd_by_row")])
def test_rows_that_may_be_longer_than_a_window_keep_the_mask(window: int, implementation: str) -> None:
    windowed = model("mistral", BY_ROW, sliding_window=window)
    assert windowed.config._attn_implementation == implementation
    require_same(windowed, model("mistral", SDPA, sliding_window=window))


def test_a_window_of_the_text_model_counts() -> None:
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = SIZES | {"sliding_window": 16, "model_type": "gemma3_text"}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision | {"model_type": "siglip_vision_model"}
    )
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    resolve_attention(Wrapped(made), BY_ROW, CPU)
    assert made.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("architecture", ["doge", "gpt_bigcode", "persimmon"])
def test_who_cannot_attend_by_row_keeps_the_mask(architecture: str) -> None:
    assert model(architecture, BY_ROW).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("architecture", ["gemma2", "granite_swa"])  # a cap of the scores, sinks
def test_who_has_no_fast_attention_takes_the_slow_one_unless_the_recipe_names_one(
    tmp_path: Path, architecture: str
) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SIZES)).save_pretrained(tmp_path)
    made = load_student(tmp_path, BY_ROW, CPU)
    resolve_attention(Wrapped(made), BY_ROW, CPU)
    assert made.config._attn_implementation == "eager"
    with pytest.raises(RefusedError, match=r"^training\.attention: sdpa does not work with this student .* as eager$"):
        load_student(tmp_path, SDPA, CPU)


@pytest.mark.parametrize(
    ("rope", "most"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 128}, 128),
    ],
)
def test_rows_beyond_the_positions_are_refused(rope: dict[str, Any], most: int) -> None:
    positions = {"rope_theta": 1e4, **rope}
    config = AutoConfig.for_model("llama", **SIZES, max_position_embeddings=512, rope_parameters=positions)
    require_rows_fit(config, most)
    with pytest.raises(RefusedError, match=rf"training\.max_length: the longest row has {most + 1} tokens.* {most}$"):
        require_rows_fit(config, most + 1)


def test_flex_attention_is_for_gpus() -> None:
    with pytest.raises(RefusedError, match=r"^training\.attention: flex_attention has no backward pass on CPU"):
        model("llama", TrainingSection(max_length=64, attention="flex_attention"))


def test_short_rows_attend_in_fp32_under_autocast_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def watched(module: Any, query: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        seen.add((query.dtype, torch.is_autocast_enabled("cpu")))
        return sdpa_attention_forward(module, query, *arguments, **options)

    made = model("llama", BY_ROW)
    monkeypatch.setattr("cgd_ray.training.loop.attention.sdpa_attention_forward", watched)
    with torch.autocast("cpu", torch.bfloat16):
        summed_loss(made, pack(), CPU)
    assert seen == {(torch.float32, False)}


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # the latter's norms of queries and keys are in fp32
def test_long_rows_attend_under_autocast_too(architecture: str) -> None:
    generator = np.random.default_rng(1)
    rows = join([(generator.integers(3, 128, size), size // 2) for size in (300, 20)])
    losses = []
    for training in (BY_ROW, SDPA):
        made = model(architecture, training)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(summed_loss(made, rows, CPU).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_what_a_user_asks_for_is_taken() -> None:
    gpu = torch.device("cuda")
    assert wanted(SDPA, gpu) == wanted(TrainingSection(attention="by_row"), gpu) == ["sdpa"]
    assert wanted(TrainingSection(), gpu) == ["flex_attention", "sdpa", "eager"]  # flash-attn is not installed here


@pytest.mark.parametrize(("precision", "first"), [("bf16", "flash_attention_2"), ("fp32", "flex_attention")])
def test_flash_attention_is_for_bfloat16(monkeypatch: pytest.MonkeyPatch, precision: str, first: str) -> None:
    monkeypatch.setattr("cgd_ray.training.loop.attention.is_flash_attn_2_available", lambda: True)
    assert wanted(TrainingSection(precision=precision), torch.device("cuda"))[0] == first


def test_each_student_gets_the_fastest_attention_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgd_ray.training.loop.attention.is_flash_attn_2_available", lambda: True)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("olmoe", **SIZES)).save_pretrained(tmp_path)
    made = load_student(tmp_path, TrainingSection(), torch.device("cuda"))  # neither flash-attn nor flex attention
    assert made.config._attn_implementation == "sdpa"
    with pytest.raises(RefusedError, match=r"^training\.attention: flash_attention_2 does not work .*FlashAttention2"):
        load_student(tmp_path, TrainingSection(attention="flash_attention_2"), CPU)


class FakeFlash:
    """In the place of flash-attn's kernel: attends by sdpa within the borders that it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[int], int, int]] = []

    def varlen(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor, max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float, **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        assert {cu_seqlens_q.dtype, cu_seqlens_k.dtype} == {torch.int32}
        self.calls.append((cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), max_seqlen_q, max_seqlen_k))
        lengths = cu_seqlens_q.diff().tolist()
        rows = zip(*(states.transpose(0, 1).split(lengths, dim=1) for states in (query, key, value)), strict=True)
        attend = torch.nn.functional.scaled_dot_product_attention
        outputs = [attend(*row, is_causal=True, scale=softmax_scale, enable_gqa=True) for row in rows]
        return torch.cat(outputs, dim=1).transpose(0, 1)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2"])
@pytest.mark.parametrize("wrap", [lambda made: made, Wrapped], ids=["bare", "wrapped"])
def test_flash_attention_is_told_where_rows_lie(architecture: str, wrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every layer looks for them in the positions, and the host waits for the device each time."""

    def look(*_: object) -> bool:
        raise AssertionError("looked for rows in the positions")

    flash = FakeFlash()
    functions = (look, flash.varlen, None, None, None), (lambda **options: options, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda _: functions)
    monkeypatch.setattr(modeling_flash_attention_utils, "_is_packed_sequence", look)
    made, masked = model(architecture, SDPA), model(architecture, SDPA)
    made.config._attn_implementation = "flash_attention_2"
    losses = [summed_loss(each, pack(), CPU) for each in (wrap(made), masked)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    borders = [0, 9, 26, 28, 58, 122]
    assert flash.calls == [(borders, borders, 64, 64)] * made.config.num_hidden_layers
    flash.calls.clear()
    packed_logits(made, join([(np.arange(5), 2)]), CPU)
    assert flash.calls[0] == ([0, 5], [0, 5], 5, 5)


def test_a_pass_is_the_same_with_padding(tmp_path: Path) -> None:
    made = model("llama", SDPA)
    losses = [summed_loss(made, rows, CPU).item() for rows in (pack(), padded(pack(), 256))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
