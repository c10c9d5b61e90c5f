"""Transformers 5.24: the attention that a model uses."""

from transformers import PreTrainedConfig


def attention_of(config: PreTrainedConfig) -> str:
    """Return the name of the model's attention, as given to `set_attn_implementation`."""
    name: str = config._attn_implementation
    return name
