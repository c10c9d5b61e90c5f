"""Turn conversations into token ids, in the same way for generation, training and evaluation."""

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from cgd_ray.errors import ConfigError
from cgd_ray.prompts.conversation import Turn
from cgd_ray.redaction import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""Exceptions of rendering a chat template: errors that it raises, and Python's errors in its expressions."""

_DATE = dt.datetime(2024, 7, 26, tzinfo=dt.UTC)
_DATE_CALL = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_OTHER_DATE_USE = re.compile(r"\bstrftime_now\b(?!\s+is\s+(?:not\s+)?defined\b)")
_RENDERINGS = 8  # a template that takes one of two texts at random passes one time in 128


def encode_chat(
    tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool, **template_kwargs: Any
) -> list[int]:
    """Token ids of the model's own chat template, which adds the BOS token if the model needs one.

    Texts of models may contain control tokens (`<|im_end|>`). They are encoded as ordinary text: as control tokens they
    would end the turn too early.
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


def require_turns(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], key: str, arguments: dict[str, object]
) -> None:
    """Render a conversation several times, and check that it is always the same and contains each text.

    Raises:
        ConfigError: the chat template fails, or its output changes from one time to the next, or does not contain each
            text once and in order, apart from white space around it: some templates render only lists of parts, and
            drop plain texts without an error. `key` is the recipe's section of the model.
    """
    mend = f"Fix: name another template in {key}.engine.chat_template, or other chat_template_kwargs"
    try:
        rendered, *others = [
            str(
                tokenizer.apply_chat_template(
                    as_messages(turns), tokenize=False, add_generation_prompt=turns[-1].role == "user", **arguments
                )
            )
            for _ in range(_RENDERINGS)
        ]
    except TEMPLATE_ERRORS as error:
        detail = one_line(error, 300)
        raise ConfigError(
            f"{key}: the model's chat template fails on {len(turns)} turns: {type(error).__name__}: {detail}. {mend}"
        ) from error
    if any(other != rendered for other in others):
        raise ConfigError(
            f"{key}: the model's chat template writes another text each time, so that no prompt can be repeated. {mend}"
        )
    for turn, times in _misplaced(rendered, turns):
        raise ConfigError(
            f"{key}: the model's chat template writes the {turn.role}'s text {times} times into a conversation of "
            f"{len(turns)} turns, not once in its place, unchanged. {mend}"
        )


def _misplaced(rendered: str, turns: Sequence[Turn]) -> Iterator[tuple[Turn, int]]:
    """Yield turns whose texts are not in the rendered conversation once and in order, and how often they are."""
    texts, end = [turn.content.strip() for turn in turns], 0
    for turn, text in zip(turns, texts, strict=True):
        others = sum(other.count(text) for other in texts) - 1  # a short text may be a part of another turn's
        times, place = rendered.count(text) - others, rendered.find(text, end)
        if times != 1 or place < 0:
            yield turn, times
        end = max(end, place + len(text))


def as_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """The turns in the form that chat templates take."""
    return [turn.as_message() for turn in turns]


def pin_date(template: str, key: str) -> str:
    """The chat template with a fixed date in place of today's: a model's input must not change from day to day.

    The date is 26 July 2024, the default of Llama 3.1's own template.

    Raises:
        ConfigError: the template requests the date in a form of its own; `key` is the model's section.
    """
    pinned = _DATE_CALL.sub(lambda call: repr(_DATE.strftime(call["format"])), template)
    if _OTHER_DATE_USE.search(_COMMENT.sub("", pinned)):
        raise ConfigError(
            f"{key}: the model's chat template writes today's date, so that another day is another prompt. Fix: give "
            f"one with a fixed date in {key}.engine.chat_template"
        )
    return pinned


def with_defaults(template: str, arguments: dict[str, Any], system: str | None = None) -> str:
    """A chat template (Jinja) that sets the given arguments and the system turn if its caller sets none."""
    lines = [
        f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in arguments.items()
    ]
    if system is not None:
        turn = f"[{{'role': 'system', 'content': {system!r}}}]"
        is_without = "messages[0].role not in ('system', 'developer')"
        lines.append(f"{{% if {is_without} %}}{{% set messages = {turn} + messages %}}{{% endif %}}")
    return "".join(lines) + template


def template_text(given: str | None, key: str) -> str | None:
    """The text of a chat template, given directly or as the name of its file.

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
        ConfigError: there is neither: a guessed template would train and query in an unknown format. `key` is the
            recipe's section that may name one.
    """
    from transformers import AutoTokenizer  # takes seconds, which a teacher behind an endpoint saves

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: the model has no tokenizer: {one_line(error, 300)}") from error
    set_template(tokenizer, template, key)
    return tokenizer


def set_template(tokenizer: "PreTrainedTokenizerBase", template: str | None, key: str) -> None:
    """Set a tokenizer's chat template to this one, or its own, with a fixed date.

    Raises:
        ConfigError: there is none, or it requests the date in a form that `pin_date` does not support.
    """
    template = template or tokenizer.chat_template
    if isinstance(template, dict):  # several templates by name
        template = template.get("default")
    if not template:
        raise ConfigError(
            f"{key}: the model has no chat template (a base model?). Fix: name one in {key}.engine.chat_template"
        )
    tokenizer.chat_template = pin_date(template, key)
