"""Attention within the rows of a pack: the choice of implementation, and our own for CPU."""

from pathlib import Path
from typing import Literal

import structlog
import torch
from deepspeed import DeepSpeedEngine
from torch import nn
from torch.compiler import config as compiler
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from cgd_ray.compat.transformers import attention_of
from cgd_ray.config.training import TrainingSection
from cgd_ray.redaction import one_line
from cgd_ray.training.dataset.packing import join
from cgd_ray.training.job import RefusedError
from cgd_ray.training.loop.loss import UNSUPPORTED_ERRORS, packed_logits

_Loadable = Literal["eager", "sdpa", "flex_attention", "flash_attention_2"]

log = structlog.get_logger(__name__)
_MASKED: tuple[_Loadable, ...] = ("sdpa", "eager")  # with a mask over all pairs of tokens in a pass
_BY_ROW, _COMPARED = "cgd_by_row", "cgd_compared"
_LIMITS = ("sliding_window", "attention_chunk_size")  # keys of a configuration: limits of the tokens in one attention
_TOLERANCE = 3e-2  # relative to an attention's largest output: bfloat16 rounds to 0.4 % at each step
# Up to this number of tokens, a CPU's backward pass of attention takes half as long in fp32 as in bfloat16.
_FP32_ROW_TOKENS = 256
# Mean difference of logits over their standard deviation; bfloat16 alone causes a tenth in deep models.
_MAX_LOGIT_SHIFT = 0.2
_FLEX_TOKENS = 256  # two blocks: mean padding is 3 % of a pass of 4,096 tokens
_FLEX_KINDS = 32  # including the short passes of the checks before training
_GPU_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)
_LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")


def wanted(training: TrainingSection, device: torch.device) -> list[_Loadable]:
    """Return attention implementations by preference: the model is loaded with the first that it supports."""
    if training.attention == "by_row":
        return ["sdpa"]
    if training.attention != "auto":
        return [training.attention]
    if device.type == "cpu":
        return ["sdpa", "eager"]
    flash: list[_Loadable] = ["flash_attention_2"]
    # FlashAttention does not support fp32.
    return [
        *(flash if is_flash_attn_2_available() and training.precision == "bf16" else []),
        "flex_attention",
        *_MASKED,
    ]


def load_student(folder: Path, training: TrainingSection, device: torch.device, **options: object) -> PreTrainedModel:
    """Load the model in a directory; under `auto`, fall back to eager attention if it has no faster one.

    Raises:
        RefusedError: its architecture does not support the attention that the recipe names.
    """
    AttentionInterface.register("flex_attention", _flex)
    *better, last = wanted(training, device)
    for attention in better:
        try:
            return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, **options)
        except (ValueError, ImportError) as error:
            if "attention" not in str(error).lower():
                raise
            log.warning("this student does not have the faster attention", lacking=attention)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=last, **options)
    except (ValueError, ImportError) as error:
        if "attention" not in str(error).lower():
            raise
        raise _refused(last, error) from error


def resolve_attention(engine: DeepSpeedEngine, training: TrainingSection, device: torch.device) -> None:
    """Compute attention row by row if the recipe or the device calls for it and it matches the mask in this model.

    An architecture may add its own biases to a mask, or not pass on where rows begin. Rows that may exceed its window
    keep the mask, which handles windows. All ranks call it together.

    Args:
        engine: wraps the model of `load_student`.
        training: `attention` and `max_length` are used.
        device: of the model.

    Raises:
        RefusedError: the attention that the recipe names does not work with this model.
    """
    if training.attention == "flex_attention" and device.type == "cpu":
        raise RefusedError("training.attention: flex_attention has no backward pass on CPU. Fix: take auto")
    model = engine.module
    attention = attention_of(model.config)
    by_row = training.attention == "by_row" or (training.attention == "auto" and device.type == "cpu")
    try:
        logits = _probe(engine, device)
    except _GPU_ERRORS:  # perhaps on this rank only: it fails, and the others with it
        raise
    except UNSUPPORTED_ERRORS as error:
        raise _refused(attention, error) from error
    if not by_row:
        return
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in _LIMITS]
    # A model without sdpa has features that sdpa would omit: sinks, a cap on scores.
    chosen = attention
    if attention == "sdpa" and not any(limit is not None and limit < training.max_length for limit in limits):
        chosen = _compared(engine, device, logits)
    model.set_attn_implementation(chosen)
    if chosen != _BY_ROW:
        log.warning("rows of a pass attend under a mask, which computes all pairs of its tokens", attention=attention)


def attends_by_row(model: PreTrainedModel) -> bool:
    """Whether `resolve_attention` chose our own attention, which reads positions on the host."""
    return bool(attention_of(model.config) == _BY_ROW)


def _compared(engine: DeepSpeedEngine, device: torch.device, masked: torch.Tensor) -> str:
    """Return attention by row if it matches sdpa under a mask, whose logits are `masked`; else return sdpa."""
    comparison = _Comparison()
    # It reads positions on the host: under torch.compile each number of rows would need its own graph.
    AttentionInterface.register(_BY_ROW, torch.compiler.disable(_by_row))
    AttentionInterface.register(_COMPARED, comparison.attend)
    AttentionMaskInterface.register(_COMPARED, sdpa_mask)
    try:
        engine.module.set_attn_implementation(_COMPARED)
        _probe(engine, device)
        engine.module.set_attn_implementation(_BY_ROW)
        off = (_probe(engine, device) - masked).abs().mean() / masked.std()
    except _GPU_ERRORS:
        raise
    except UNSUPPORTED_ERRORS:
        return "sdpa"
    seen = comparison.differences
    is_same = seen and all(difference < _TOLERANCE for difference in seen) and off < _MAX_LOGIT_SHIFT
    return _BY_ROW if is_same else "sdpa"


class _Comparison:
    """Attends under the mask and records the error of attention by row: the largest difference over the largest output.

    Each attention is compared on the same input. In bfloat16 one rounding difference grows to a quarter of the logits'
    standard deviation thirty layers later, as much as an omitted bias.
    """

    def __init__(self) -> None:
        self.differences: list[float] = []

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        position_ids: torch.Tensor,
        **options: object,
    ) -> tuple[torch.Tensor, None]:
        """Run `sdpa_attention_forward` and record the error."""
        masked, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
        by_row, _ = _by_row(module, query, key, value, mask, position_ids=position_ids, **options)
        self.differences.append(((by_row - masked).abs().max() / masked.abs().max()).item())
        return masked, None


def pass_multiple(engine: DeepSpeedEngine) -> int:
    """Return the number of which a pass's token count should be a multiple; 1 if it does not matter.

    Flex attention is compiled for each kind of pass (one row or several, one block of 128 tokens or several), up to
    `recompile_limit` times. Beyond that, it computes all pairs of tokens.
    """
    if attention_of(engine.module.config) != "flex_attention":
        return 1
    compiler.recompile_limit = max(_FLEX_KINDS, compiler.recompile_limit)
    return _FLEX_TOKENS


def require_rows_fit(config: PreTrainedConfig, longest: int) -> None:
    """Refuse rows that exceed the model's positions, or that would change the positions of shorter rows beside them.

    Args:
        config: of the text model.
        longest: tokens of the longest row.

    Raises:
        RefusedError: see above.
    """
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    layers = [rope] if "rope_type" in rope else [each for each in rope.values() if isinstance(each, dict)]
    why = ""
    for stretched in (each for each in layers if each.get("rope_type") in _LENGTH_DEPENDENT_ROPE):
        limit = stretched.get("original_max_position_embeddings") or limit
        why = " without stretching them, which would change all rows of a pass with the longest"
    if limit and longest > limit:
        raise RefusedError(
            f"training.max_length: the longest row has {longest} tokens, and student.model has {limit} positions{why}. "
            f"Fix: set it to at most {limit}"
        )


def _refused(attention: str, error: Exception) -> RefusedError:
    text = one_line(error, 300)
    return RefusedError(
        f"training.attention: {attention} does not work with this student ({text}). Fix: take another one, as eager"
    )


@torch.no_grad()
def _probe(engine: DeepSpeedEngine, device: torch.device) -> torch.Tensor:
    """Return the logits of a small pack, without dropout."""
    vocabulary = engine.module.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (44,), generator=torch.Generator().manual_seed(0)).numpy()
    engine.eval()
    logits = packed_logits(engine, join([(ids[:20], 1), (ids[20:23], 1), (ids[23:], 1)]), device).float()
    engine.train()
    return logits


def _flex(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run Transformers' flex attention, made safe for autocast and for short passes.

    Under autocast, rotary positions leave queries and keys in fp32 and values in bfloat16, but the kernel reads all as
    one type. For fewer than 128 queries PyTorch uses a decoding kernel, which it cannot build for some shapes.
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (states.to(torch.get_autocast_dtype(kind)) for states in (query, key, value))
    kernel = {"FORCE_USE_FLEX_ATTENTION": True}
    attended: tuple[torch.Tensor, torch.Tensor | None] = flex_attention_forward(
        module, query, key, value, mask, kernel_options=kernel, **options
    )
    return attended


def _by_row(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention [1, heads, T, size] -> [1, T, heads, size] per row; positions [1, T] restart at rows.

    Under a mask over all pairs, a fused CPU kernel computes all pairs: for n rows of equal length, n times the work.
    """
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    lengths = [end - start for start, end in zip(starts, [*starts[1:], query.shape[2]], strict=True)]
    rows = zip(*(torch.split(states, lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [_within_row(module, *row, **options) for row in rows]
    return torch.cat(outputs, dim=1), None


def _within_row(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, /, **options: object
) -> torch.Tensor:
    """Compute causal attention [1, heads, T, size] -> [1, T, heads, size] of one row."""
    output: torch.Tensor
    if query.shape[2] > _FP32_ROW_TOKENS or query.device.type != "cpu":
        output, _ = sdpa_attention_forward(module, query, key, value, None, **options)
    else:
        with torch.autocast("cpu", enabled=False):  # stage 0's autocast would round them back
            output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), None, **options)
    return output.to(query.dtype)  # under autocast the two branches return different types
