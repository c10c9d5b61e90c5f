"""Questions with choices: how they are shown, and the letter of the right one."""

import hashlib
import string

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
        texts = _texts([values.get(name) for name in data.choices_columns], source, data.choices_columns)
        order = sorted(range(len(texts)), key=lambda place: _draw(question, place))
        return _shown([texts[place] for place in order]), _LETTERS[order.index(0)]
    listed, labels = _listed(values.get(data.choices_column or ""))
    texts = _texts(listed, source, [data.choices_column or ""])
    answer = values.get(data.reference_column) if data.reference_column else None
    return _shown(texts), None if answer is None else _letter(answer, texts, labels, source)


def _draw(question: str, place: int) -> bytes:
    return hashlib.blake2b(f"{place}:{question}".encode(errors="replace"), person=b"choices").digest()


def _listed(value: object) -> tuple[list[object], list[str]]:
    """Return texts and labels of a list, or of an object with both."""
    if isinstance(value, dict):
        return list(value.get("text") or []), [str(label) for label in value.get("label") or []]
    return (list(value), []) if isinstance(value, list) else ([], [])


def _texts(choices: list[object], source: str, columns: list[str]) -> list[str]:
    """Return the choices as texts.

    Raises:
        RowError: they are not 2 to 10 texts.
    """
    texts = [choice.strip() for choice in choices if isinstance(choice, str) and choice.strip()]
    if not 2 <= len(choices) <= len(_LETTERS) or len(texts) < len(choices):
        wanted = f"not 2 to {len(_LETTERS)} texts. Fix: correct the row, or name other columns"
        raise RowError(f"{source}: {', '.join(columns)}: {wanted}", source, "choices that are no texts")
    return texts


def _letter(answer: object, texts: list[str], labels: list[str], source: str) -> str:
    """Return the letter of the right choice, given by its label, letter, text, or number from 0."""
    given = str(answer).strip()
    letters = list(_LETTERS[: len(texts)])
    for names in (labels, letters, texts, [str(place) for place in range(len(texts))]):
        if given in names:
            return letters[names.index(given)]
    raise RowError(
        f"{source}: the reference {given!r:.40} is none of the {len(texts)} choices. Fix: correct the row, or name "
        "another data.reference_column",
        source,
        "reference that is no choice",
    )


def _shown(texts: list[str]) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, texts, strict=False))
