"""Quality of generated rows: what is counted, and against what."""

from typing import Any

import pytest

from cgd_ray.engines.join import JoinedRow
from cgd_ray.evaluation.quality import _counted

REFERENCE = r"The answer is \boxed{4}."


def row(draft: str | None, critique: str | None, refine: str | None, verdict: str | None = None) -> JoinedRow:
    texts: dict[str, Any] = {
        "reference": REFERENCE,
        "draft": draft,
        "critique": critique,
        "refine": refine,
        "answer": None,
    }
    results = {"draft": {}, "critique": {"verdict": verdict} if critique else None, "refine": {}}
    return JoinedRow(texts, results)


def test_accuracy_flips_and_verdicts() -> None:
    rows = [
        row("It is 4.", "good", "It is 4.", "right"),  # stays right, verdict right
        row("It is 5.", "bad", "It is 4.", "wrong"),  # fixed, verdict right
        row("It is 4.", "bad", "It is 3.", "wrong"),  # broken, verdict wrong
        row("It is 5.", "cut off", None, None),  # never refined, no verdict
        row(None, None, None),  # truncated draft
    ]
    quality = _counted(rows).tell()
    assert quality["draft"] == {"rows": 4, "accuracy": 0.5}
    assert quality["refine"] == {"rows": 3, "accuracy": pytest.approx(2 / 3)}
    assert quality["flips"] == {"rows": 3, "fixed": 1, "broken": 1}
    assert quality["verdict"] == {"rows": 3, "accuracy": pytest.approx(2 / 3)}
    assert "answer" not in quality  # the recipe has no such stage


def test_rows_without_a_reference_are_not_counted() -> None:
    bare = row("It is 4.", "good", "It is 4.", "right")
    bare.texts["reference"] = None
    quality = _counted([bare, row("It is 5.", None, None)]).tell()
    assert quality["draft"] == {"rows": 1, "accuracy": 0.0}
    assert quality["verdict"] == {"rows": 0, "accuracy": None}


def test_copy_rate_is_against_the_same_row() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    copied, other = (
        row("It is 4.", words, words),
        row("It is 4.", "something else entirely, not at all the same", words),
    )
    assert _counted([copied]).tell()["copy_rate"] == {"critique to refinement": 1.0}
    assert _counted([copied, other]).tell()["copy_rate"] == {"critique to refinement": 0.5}
