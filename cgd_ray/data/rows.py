"""One row of a prompt source, checked."""

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from cgd_ray.config.data import ColumnData
from cgd_ray.data.choices import read_choices
from cgd_ray.data.lines import Columns, ShownFloat
from cgd_ray.data.messages import BESIDE, read_answer, read_messages
from cgd_ray.data.prompt_id import is_blank
from cgd_ray.data.skipped import OnSkip, RowError
from cgd_ray.errors import ConfigError
from cgd_ray.prompts.conversation import History, with_system

Located = tuple[str, Columns]
"""FILE:ROW and the row's columns."""


@dataclass(frozen=True)
class SourceRow:
    """A row of its source, before the prompt template is applied."""

    values: Columns
    """The columns that were read, of any type: those that the prompt template names, the prompt and the reference."""

    prompt: str
    reference: str | None
    """The whole text of the reference column; grading extracts the gold answer."""

    kind: str | None
    novel: bool
    source: str
    """FILE:ROW, counted from 1."""

    history: History = ()
    """The turns before the prompt, the recipe's system turn included."""


def checked_row(values: Columns, source: str, data: ColumnData) -> SourceRow:
    """Take the prompt, the turns before it, and the reference from a row's columns.

    Raises:
        RowError: a column is missing, the prompt is blank or not text, a conversation has no question or turns that
            are not text, or the reference is neither text nor a number.
    """
    if data.messages_column is None:
        return _plain_row(values, source, data)
    key, name = data.question_column
    conversation = read_messages(_column(values, name, key, source), source, f"{key} {name!r}", values)
    prompt, history = _text(conversation.question, key, name, source), conversation.history
    is_behind = data.reference_column == name
    reference = conversation.answer if is_behind else _given_reference(values, source, data)
    system = values.get(data.system_column)
    for text in (system if isinstance(system, str) and system.strip() else None, data.system_prompt):
        history = with_system(history, text)
    return SourceRow(values, prompt, reference, kind=None, novel=False, source=source, history=history)


def _plain_row(values: Columns, source: str, data: ColumnData) -> SourceRow:
    key, name = data.question_column
    prompt = _text(_column(values, name, key, source), key, name, source)
    history = with_system((), data.system_prompt)
    if data.choices_column or data.choices_columns:
        shown, letter = read_choices(values, source, data, prompt)
        return SourceRow(values | {"choices": shown}, prompt, letter, None, novel=False, source=source, history=history)
    reference = _given_reference(values, source, data)
    return SourceRow(values, prompt, reference, kind=None, novel=False, source=source, history=history)


def wanted_columns(data: ColumnData) -> set[str]:
    """Columns that are read in addition to those of the prompt template; not all need to exist."""
    named = {data.question_column[1], data.reference_column, data.choices_column, *data.choices_columns}
    if data.messages_column is not None:
        named |= {data.system_column, *BESIDE}
    return {name for name in named if name is not None}


def require_columns(present: list[str], data: ColumnData, where: str) -> None:
    """Check the columns of a whole file before its rows.

    Raises:
        ConfigError: the prompt or reference column is missing; the text lists the existing columns.
    """
    for key, name in (data.question_column, ("data.reference_column", data.reference_column)):
        if name is not None and name not in present:
            raise _missing(key, name, where, present)


def _text(value: object, key: str, name: str, source: str) -> str:
    if isinstance(value, str) and not is_blank(value):
        return value
    found = "empty" if isinstance(value, str) else _type_name(value)
    mend = f"name another {key} than {name!r}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        mend = f"for conversations set data.messages_column={name}"
    raise RowError(
        f"{source}: the prompt is {found}, not text. Fix: correct the row, or {mend}",
        source,
        "blank prompt" if isinstance(value, str) else "prompt that is no text",
    )


def _given_reference(values: Columns, source: str, data: ColumnData) -> str | None:
    name = data.reference_column
    if name is None:
        return None
    value = _column(values, name, "data.reference_column", source)
    if data.messages_column is not None and isinstance(value, list):
        return read_answer(value, source, f"data.reference_column {name!r}")
    return _reference(value, name, source)


def _column(values: Columns, name: str, key: str, source: str) -> Any:
    if name not in values:
        raise RowError(str(_missing(key, name, source, list(values))), source, f"no column {name}")
    return values[name]


def _missing(key: str, name: str, where: str, present: list[str]) -> ConfigError:
    columns = ", ".join(present) or "none"
    return ConfigError(f"{key} {name!r}: no such column in {where}. Fix: take one of {columns}")


def _reference(value: object, name: str, source: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if (number := _number(value)) is not None:
        return number
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):  # several parts of an answer
        return ", ".join(value)
    raise RowError(
        f"{source}: the reference is {_type_name(value)}, not text or a number. Fix: correct the row, or name another "
        f"data.reference_column than {name!r}",
        source,
        "reference that is no text or number",
    )


def _number(value: object) -> str | None:
    """Return a number as its source writes it; None for anything else."""
    if isinstance(value, ShownFloat):
        return value.text
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
    return str(value) if is_number else None


def template_values(row: SourceRow, names: Set[str]) -> dict[str, str | None]:
    """Return the values of the columns that a prompt template names: texts, numbers as the source writes them, nulls.

    Raises:
        RowError: a column holds anything else.
    """
    found: dict[str, str | None] = {}
    for name in names & row.values.keys() - {"prompt"}:
        value = row.values[name]
        found[name] = value if value is None or isinstance(value, str) else _number(value)
        if value is not None and found[name] is None:
            raise RowError(
                f"{row.source}: data.prompt_template uses the column {name!r}, which is {_type_name(value)} here, not "
                "text or a number. Fix: correct the row, or leave the column out of the template",
                row.source,
                f"{name} that is no text or number",
            )
    return found | {"prompt": row.prompt}


def decoded_rows(batch: pa.RecordBatch | pa.Table, name: str, first: int, on_skip: OnSkip) -> Iterator[Located]:
    """Yield FILE:ROW and the columns of each row of a batch, whose first row has this number.

    A row with text that is not UTF-8 is skipped: Arrow checks text only when it is read.
    """
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows > 1:
            for place in range(batch.num_rows):
                yield from decoded_rows(batch.slice(place, 1), name, first + place, on_skip)
            return
        source = f"{name}:{first}"
        text = f"{source}: text that is not UTF-8: {error.reason}. Fix: correct the row, or leave it out"
        on_skip(RowError(text, source, "not UTF-8"))
        return
    for number, row in enumerate(values, start=first):
        yield f"{name}:{number}", row


def as_shown(value: object, kind: str) -> object:
    """Shorten a number of less than double precision to its written form: 2.3 in float32, not 2.299999952316284."""
    kind = {"float": "float32", "halffloat": "float16"}.get(kind, kind)  # Arrow's names, too
    is_short = kind in ("float16", "float32") and isinstance(value, float) and math.isfinite(value)
    return str(np.dtype(kind).type(value)) if is_short else value


def _type_name(value: object) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "bool": "a truth value"}
    return names.get(type(value).__name__, f"{type(value).__name__} {value!r:.40}")
