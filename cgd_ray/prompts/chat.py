"""From a conversation to token ids, the same way for generation, training and evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def template_text(given: str | None, key: str) -> str | None:
    """The text of a chat template that is given as such, or as the name of a file that holds it.

    Raises:
        ConfigError: there is no such file; `key` is the recipe's key that names it.
    """
    if given is None or "{" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{key} {given}: neither a template (Jinja) nor a file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key} {given}: not a text file in UTF-8") from error


def load_tokenizer(folder: Path, template: str | None, key: str) -> "PreTrainedTokenizerBase":
    """The tokenizer in a model's directory, with this chat template or its own.

    Raises:
        ConfigError: there is neither: one that is guessed would teach and ask in a format that nobody knows of. `key`
            is the recipe's section that may name one.
    """
    from transformers import AutoTokenizer  # seconds, which an endpoint's teacher does without

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: the model has no tokenizer: {' '.join(str(error).split())[:300]}") from error
    if template is not None:
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{key}: the model has no chat template (a base model?); name one in {key}.engine.chat_template"
        )
    return tokenizer
