"""Quality of generated rows: what is counted, and against what."""

from pathlib import Path
from typing import Any

import pytest

from cgd_ray.evaluation import quality
from cgd_ray.evaluation.quality import Flips, GradedShare, _counted, generated_quality
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.rows import JoinedRow
from cgd_ray.storage.filesystem import Store
from tests.unit.generation.test_planning import engine, joined, lacking, prompts, recipe, walk

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
    told = _counted(rows).summary()
    assert told.accuracy["draft"] == GradedShare(4, 0.5)
    assert told.accuracy["refine"] == GradedShare(3, pytest.approx(2 / 3))
    assert told.flips == Flips(rows=3, fixed=1, broken=1)
    assert told.verdicts == GradedShare(3, pytest.approx(2 / 3))
    assert "answer" not in told.accuracy  # the recipe has no such stage


def test_rows_without_a_reference_are_not_counted() -> None:
    bare = row("It is 4.", "good", "It is 4.", "right")
    bare.texts["reference"] = None
    told = _counted([bare, row("It is 5.", None, None)]).summary()
    assert told.accuracy["draft"] == GradedShare(1, 0.0)
    assert told.verdicts == GradedShare(0, None)


def test_rows_that_were_graded_are_not_graded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    join = joined(stages, prompts(3))
    walk(stages, lacking(join), engine())
    first = generated_quality(join)
    assert first.accuracy["refine"].rows == 3
    monkeypatch.setattr(quality, "grade", None)
    assert generated_quality(join) == first
    walk(stages, lacking(joined(stages, prompts(4))), engine())
    with pytest.raises(TypeError):
        generated_quality(joined(stages, prompts(4)))


def test_copy_rate_is_against_the_same_row() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    copied, other = (
        row("It is 4.", words, words),
        row("It is 4.", "something else entirely, not at all the same", words),
    )
    assert _counted([copied]).summary().copy_rate == {"critique to refinement": 1.0}
    assert _counted([copied, other]).summary().copy_rate == {"critique to refinement": 0.5}
