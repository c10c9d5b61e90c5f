"""One row of a prompt source, checked."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from cgd_ray.config.data import ColumnData
from cgd_ray.data.lines import ShownFloat
from cgd_ray.data.messages import read_messages
from cgd_ray.data.skipped import RowError
from cgd_ray.errors import ConfigError
from cgd_ray.prompts.conversation import History, with_system


@dataclass(frozen=True)
class SourceRow:
    """A row as its source gives it, before the prompt template."""

    values: dict[str, Any]
    """The columns that were read: all with text, and whatever the prompt and reference columns hold."""

    prompt: str
    reference: str | None
    """The reference column's text whole; what the gold answer in it is, grading decides."""

    kind: str | None
    novel: bool
    source: str
    """FILE:ROW, counted from 1."""

    history: History = ()
    """The turns before the prompt, the recipe's system turn included."""


def checked_row(values: dict[str, Any], source: str, data: ColumnData) -> SourceRow:
    """Take the prompt, what stands before it, and the reference from a row's columns.

    Raises:
        RowError: a column is missing, the prompt is blank or not text, a conversation has no question or turns that
            are not text, or the reference is neither text nor a number.
    """
    key, name = data.question_column
    prompt = _column(values, name, key, source)
    history: History = ()
    reference: str | None = None
    if data.messages_column is not None:
        conversation = read_messages(prompt, source, f"{key} {name!r}")
        prompt, history, reference = conversation.question, conversation.history, conversation.answer
    if not isinstance(prompt, str) or not prompt.strip():
        found = "empty" if isinstance(prompt, str) else _type_name(prompt)
        raise RowError(
            f"{source}: the prompt is {found}, not text; mend the row or name another {key} than {name!r}",
            source,
            "blank prompt" if isinstance(prompt, str) else "prompt that is no text",
        )
    if data.reference_column is not None:
        value = _column(values, data.reference_column, "data.reference_column", source)
        reference = _reference(value, data.reference_column, source)
    history = with_system(history, data.system_prompt)
    return SourceRow(values, prompt, reference, kind=None, novel=False, source=source, history=history)


def require_columns(present: list[str], data: ColumnData, where: str) -> None:
    """Check the columns of a whole file before its rows.

    Raises:
        ConfigError: the prompt or reference column is missing; the text lists those that are there.
    """
    for key, name in (data.question_column, ("data.reference_column", data.reference_column)):
        if name is not None and name not in present:
            raise _missing(key, name, where, present)


def _column(values: dict[str, Any], name: str, key: str, source: str) -> Any:
    if name not in values:
        raise RowError(str(_missing(key, name, source, list(values))), source, f"no column {name}")
    return values[name]


def _missing(key: str, name: str, where: str, present: list[str]) -> ConfigError:
    columns = ", ".join(present) or "none"
    return ConfigError(f"{key} {name!r}: there is no such column in {where}; the columns are {columns}")


def _reference(value: object, name: str, source: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, ShownFloat):
        return value.text
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise RowError(
        f"{source}: the reference is {_type_name(value)}, not text or a number; mend the row or name another "
        f"data.reference_column than {name!r}",
        source,
        "reference that is no text or number",
    )


def as_shown(value: object, kind: str) -> object:
    """A number of a column of less than double precision as it was written: 2.3 in float32 is not 2.299999952316284."""
    kind = {"float": "float32", "halffloat": "float16"}.get(kind, kind)  # Arrow's names, too
    is_short = kind in ("float16", "float32") and isinstance(value, float) and math.isfinite(value)
    return str(np.dtype(kind).type(value)) if is_short else value


def _type_name(value: object) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "bool": "a truth value"}
    return names.get(type(value).__name__, f"{type(value).__name__} {value!r:.40}")
