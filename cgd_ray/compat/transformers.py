"""Transformers 5.23: the attention that a model uses."""

from transformers import PreTrainedConfig


def attention_of(config: PreTrainedConfig) -> str:
    """The name of the model's attention, as `set_attn_implementation` took it."""
    name: str = config._attn_implementation
    return name
