"""Questions with choices: how they are shown, and the letter of the right one."""

import hashlib
import string
from typing import Any

from cgd_ray.config.data import ColumnData
from cgd_ray.data.lines import Columns
from cgd_ray.data.skipped import RowError

_LETTERS = string.ascii_uppercase[:10]  # those that the grader takes for choices


def read_choices(values: Columns, source: str, data: ColumnData, question: str) -> tuple[str, str | None]:
    """Read a row's choices.

    Returns:
        The choices, one a line ("A. ..."), and the letter of the right one; None if the row has no reference.

    Raises:
        RowError: the choices are not 2 to 10 texts, or the reference names none of them.
    """
    if data.choices_columns:
        texts = [values.get(name) for name in data.choices_columns]
        order = sorted(range(len(texts)), key=lambda place: _draw(question, place))
        _require_texts(texts, source, data.choices_columns)
        return _shown([str(texts[place]) for place in order]), _LETTERS[order.index(0)]
    texts, labels = _listed(values.get(data.choices_column or ""))
    _require_texts(texts, source, [data.choices_column or ""])
    answer = values.get(data.reference_column) if data.reference_column else None
    return _shown(texts), None if answer is None else _letter(answer, texts, labels, source)


def _draw(question: str, place: int) -> bytes:
    return hashlib.blake2b(f"{place}:{question}".encode(errors="replace"), person=b"choices").digest()


def _listed(value: Any) -> tuple[list[Any], list[str]]:
    """Return texts and labels of a list, or of an object with both."""
    if isinstance(value, dict):
        return list(value.get("text") or []), [str(label) for label in value.get("label") or []]
    return (list(value), []) if isinstance(value, list) else ([], [])


def _require_texts(texts: list[Any], source: str, columns: list[str]) -> None:
    if not 2 <= len(texts) <= len(_LETTERS) or not all(isinstance(text, str) and text.strip() for text in texts):
        wanted = f"not 2 to {len(_LETTERS)} texts. Fix: correct the row, or name other columns"
        raise RowError(f"{source}: {', '.join(columns)}: {wanted}", source, "choices that are no texts")


def _letter(answer: Any, texts: list[Any], labels: list[str], source: str) -> str:
    """Return the letter of the right choice, given by its label, letter, text, or number from 0."""
    given = str(answer).strip()
    letters = list(_LETTERS[: len(texts)])
    for names in (labels, letters, [text.strip() for text in texts], [str(place) for place in range(len(texts))]):
        if given in names:
            return letters[names.index(given)]
    raise RowError(
        f"{source}: the reference {given!r:.40} is none of the {len(texts)} choices. Fix: correct the row, or name "
        "another data.reference_column",
        source,
        "reference that is no choice",
    )


def _shown(texts: list[Any]) -> str:
    return "\n".join(f"{letter}. {text.strip()}" for letter, text in zip(_LETTERS, texts, strict=False))
