"""From a conversation to token ids, the same way for generation, training and evaluation."""

import datetime as dt
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from cgd_ray.errors import ConfigError
from cgd_ray.prompts.conversation import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What rendering a chat template may raise: its own refusals, and Python's errors in what it computes."""

_DATE = dt.datetime(2024, 7, 26, tzinfo=dt.UTC)
_DATE_CALL = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
_OTHER_DATE_CALL = re.compile(r"strftime_now\s*\(")


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


def require_turns(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], key: str, arguments: dict[str, object]
) -> None:
    """Render a conversation, and look for each text in it.

    Raises:
        ConfigError: the chat template fails, or a text does not stand in what it renders, once and in its place: some
            render lists of parts alone, and drop texts without a word. `key` is the recipe's section of the model.
    """
    mend = f"Fix: name another template in {key}.engine.chat_template, or other chat_template_kwargs"
    try:
        rendered = str(
            tokenizer.apply_chat_template(
                as_messages(turns), tokenize=False, add_generation_prompt=turns[-1].role == "user", **arguments
            )
        )
    except TEMPLATE_ERRORS as error:
        detail = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{key}: the model's chat template fails on {len(turns)} turns: {type(error).__name__}: {detail}. {mend}"
        ) from error
    places = [rendered.find(turn.content) for turn in turns]
    lost = [turn for turn in turns if rendered.count(turn.content) != 1]
    if lost or places != sorted(places):
        turn = lost[0] if lost else turns[0]
        raise ConfigError(
            f"{key}: the model's chat template writes the {turn.role}'s text {rendered.count(turn.content)} times into "
            f"a conversation of {len(turns)} turns, not once in its place. {mend}"
        )


def as_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """The turns in the form that chat templates take."""
    return [turn.as_message() for turn in turns]


def pin_date(template: str, key: str) -> str:
    """The chat template with a fixed date in place of today's: what a model is shown must not change overnight.

    The date is 26 July 2024, which Llama 3.1's own template says where it is told none.

    Raises:
        ConfigError: it asks for the date in a form that only the template knows; `key` is the model's section.
    """
    pinned = _DATE_CALL.sub(lambda call: repr(_DATE.strftime(call["format"])), template)
    if _OTHER_DATE_CALL.search(pinned):
        raise ConfigError(
            f"{key}: the model's chat template writes today's date, so that another day is another prompt. Fix: give "
            f"one with a fixed date in {key}.engine.chat_template"
        )
    return pinned


def with_defaults(template: str, arguments: dict[str, Any], system: str | None = None) -> str:
    """A chat template (Jinja) that sets the given arguments, and the system turn, where its caller gives none."""
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
    set_template(tokenizer, template, key)
    return tokenizer


def set_template(tokenizer: "PreTrainedTokenizerBase", template: str | None, key: str) -> None:
    """Give a tokenizer this chat template, or its own, with a fixed date.

    Raises:
        ConfigError: there is none, or it asks for the date in another way than `pin_date` knows.
    """
    template = template or tokenizer.chat_template
    if isinstance(template, dict):  # several, by their names
        template = template.get("default")
    if not template:
        raise ConfigError(
            f"{key}: the model has no chat template (a base model?). Fix: name one in {key}.engine.chat_template"
        )
    tokenizer.chat_template = pin_date(template, key)
