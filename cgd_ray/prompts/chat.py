"""From a conversation to token ids, the same way for drafting, training, evaluation and serving."""

from typing import Any


def encode_chat(
    tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool, **template_kwargs: Any
) -> list[int]:
    """Token ids of the model's own chat template. The template brings the BOS token where the model wants one."""
    ids = tokenizer.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=add_generation_prompt,
        return_dict=False,
        **template_kwargs,
    )
    return list(ids)
