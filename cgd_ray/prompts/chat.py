"""From a conversation to token ids, the same way for generation, training and evaluation."""

from typing import Any


def encode_chat(
    tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool, **template_kwargs: Any
) -> list[int]:
    """Token ids of the model's own chat template, which brings the BOS token where the model wants one.

    Texts of models may hold control tokens (`<|im_end|>`). They become ordinary text: as control tokens they would end
    a turn that did not end.
    """
    ids = tokenizer.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=add_generation_prompt,
        return_dict=False,
        sanitize_control_tokens=True,
        **template_kwargs,
    )
    return list(ids)


def with_defaults(template: str, arguments: dict[str, Any]) -> str:
    """A chat template (Jinja) that sets the given arguments where its caller gives none."""
    lines = (
        f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in arguments.items()
    )
    return "".join(lines) + template
