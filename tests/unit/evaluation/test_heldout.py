"""Which held-out prompts are asked, however many there are, and what an evaluation of them takes."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cgd_ray.config.evaluation import Decoding, EvaluationSection
from cgd_ray.config.recipe import Recipe
from cgd_ray.data.prepare import PreparedPrompts
from cgd_ray.data.prompt_id import holdout_position
from cgd_ray.errors import CgdError
from cgd_ray.estimation.evaluation import forecast_evaluation
from cgd_ray.evaluation import questions as questions_module
from cgd_ray.evaluation import run as evaluation
from cgd_ray.evaluation.questions import QuestionSet, heldout_rows
from cgd_ray.evaluation.run import Student, run_evaluation
from cgd_ray.evaluation.scores import grade_results
from cgd_ray.inference.options import ModelRef
from cgd_ray.stages.resolved import ResolvedRun, open_run
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import PROMPTS, RESULTS
from cgd_ray.storage.tables import Table
from tests.unit.generation.test_planning import engine, joined, lacking, prompts, recipe, walk

PART, PARTS = 50, 12


def limited(root: Path, limit: int | None) -> Recipe:
    return recipe(root, evaluation={"limit": limit})


def heldout_table(root: Path, reference: str | None = "the answer is 7") -> Table:
    """Every other prompt is held out, every fifth without an answer to grade."""
    table = Table(Store(str(root)), "prompts", "e" * 16, PROMPTS)
    for part in range(PARTS):
        rows = prompts(PART * PARTS).slice(part * PART, PART).to_pylist()
        for number, row in enumerate(rows):
            row |= {"split": "heldout" if number % 2 else "train", "reference": reference if number % 5 else None}
        table.write_part(f"part-{part:06d}", pa.Table.from_pylist(rows, schema=PROMPTS))
    return table


def asked(recipe: Recipe, table: Table) -> list[str]:
    ids: list[str] = heldout(recipe, table).rows["prompt_id"].to_pylist()
    return ids


def heldout(recipe: Recipe, table: Table, samples: int = 1) -> QuestionSet:
    return QuestionSet("heldout", "report", heldout_rows(table, recipe.evaluation.limit), Decoding(), samples)


def test_the_smallest_hashes_are_asked_whatever_their_part(tmp_path: Path) -> None:
    table = heldout_table(tmp_path)
    everything = asked(limited(tmp_path, None), table)
    assert len(everything) == PARTS * 20
    assert everything == sorted(everything, key=holdout_position)
    assert asked(limited(tmp_path, 7), table) == everything[:7]


def test_only_a_few_of_a_million_are_asked_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EvaluationSection().limit == 5000
    held = list[int]()
    first = questions_module._first

    def counted(rows: pa.Table, limit: int | None) -> pa.Table:
        held.append(len(rows))
        return first(rows, limit)

    monkeypatch.setattr(questions_module, "_first", counted)
    heldout(limited(tmp_path, 7), heldout_table(tmp_path))
    assert max(held) <= 3 * 7  # beside the twenty of one part


def test_prompts_without_an_answer_to_grade_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CgdError, match=r"evaluation: none of 300 heldout prompts has a reference that states"):
        heldout(recipe(tmp_path), heldout_table(tmp_path, reference=None))


def answer(row: dict[str, Any], parent: str, status: str, text: str | None) -> dict[str, Any]:
    made = {"prompt_id": row["prompt_id"], "sample": 0, "parent": parent, "status": status, "text": text}
    return dict.fromkeys(RESULTS.names) | made | {"model": "m", "attempt": 1, "completion_tokens": 3}


def test_only_what_has_no_answer_is_asked_and_each_answer_meets_its_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, store = limited(tmp_path, 6), Store(str(tmp_path))
    asked_set = heldout(made, heldout_table(tmp_path))
    ids = asked_set.rows["prompt_id"].to_pylist()
    texts = ["the answer is 7", "the answer is 8", None]
    asked_for = list[list[str]]()

    def generate(
        _run: ResolvedRun, stage: Any, _model: ModelRef, asked: tuple[pa.Table, pa.Table], _lease: object
    ) -> dict[str, Any]:
        questions, left = asked
        assert questions["prompt_id"].to_pylist() == ids[: len(questions)]
        todo = left.to_pylist()
        asked_for.append([row["prompt_id"] for row in todo])
        statuses = ["ok", "ok", "truncated"]
        results = [answer(row, stage.parent_of(row), statuses[n % 3], texts[n % 3]) for n, row in enumerate(todo)]
        stage.results.write_part(f"part-{stage.attempt:04d}-a-000000", results[::-1])
        return {"rows": len(todo)}

    monkeypatch.setattr(evaluation, "_generate", generate)
    three, student = replace(asked_set, rows=asked_set.rows.slice(0, 3)), Student(ModelRef("m"), "identity")
    run_evaluation(open_run(made, store), [three], "base", student)
    answers = run_evaluation(open_run(made, store), [asked_set], "base", student)
    assert answers.spent == {"rows": 3}
    assert asked_for == [ids[:3], ids[3:]]
    results = answers.results["heldout"]
    graded = grade_results(results, asked_set)
    assert graded.correct.tolist() == [[True, False, False] * 2]
    assert graded.truncated.tolist() == [[False, False, True] * 2]
    assert grade_results(results.slice(0, 0), asked_set).correct.tolist() == [[False] * 6]


@pytest.mark.parametrize(
    ("written", "error"),
    [(["failed", "ok", "ok", "ok", "ok", "ok"], None), (["failed", "ok"], "4 questions were skipped")],
)
def test_a_prompt_that_fails_was_asked_and_one_that_is_passed_by_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[str], error: str | None
) -> None:
    made = recipe(tmp_path, evaluation={"limit": 6}, generation={"max_failed_fraction": 0.2})
    store = Store(str(tmp_path))
    asked_set = heldout(made, heldout_table(tmp_path))
    stages = list[Any]()
    for name in ("read_cluster", "sized", "block_rows"):
        monkeypatch.setattr(evaluation, name, lambda *_, **__: None)
    monkeypatch.setattr(evaluation, "build_chain", lambda *given, **_: stages.extend(given[3]))

    def run_chains(*_: object) -> int:
        results = [
            answer(row, stages[0].parent_of(row), status, None)
            for row, status in zip(asked_set.rows.to_pylist(), written, strict=False)
        ]
        stages[0].results.write_part("part-0001-a-000000", results)
        return 0

    monkeypatch.setattr(evaluation, "run_chains", run_chains)
    with pytest.raises(CgdError, match=error) if error else contextlib.nullcontext():
        answers = run_evaluation(open_run(made, store), [asked_set], "base", Student(ModelRef("m"), "identity"))
        assert answers.results["heldout"]["status"].to_pylist().count("failed") == 1


def test_a_plan_counts_the_answers_of_both_students(tmp_path: Path) -> None:
    made, store = limited(tmp_path, 9), Store(str(tmp_path))
    run = open_run(made, store)
    join = joined(run.stages, prompts(5))
    vars(run)["prompts"] = PreparedPrompts(join.prompts, train=5, heldout=0, duplicates=0, reused=True)
    sets = [heldout(made, heldout_table(tmp_path))]
    assert forecast_evaluation(run, sets, None) is None
    walk(run.stages, lacking(join), engine(), only=["draft"])
    told = forecast_evaluation(run, sets, None)
    assert told
    assert (told.questions, told.answers) == (9, 18)
    drafts = run.stages.draft.results.read()
    mean = sum(drafts["completion_tokens"].to_pylist()) / 5
    assert told.completion_tokens.value == pytest.approx(18 * mean)
    assert told.hours is None
