"""Sets of questions: other sources than the run's own, public benchmarks by name, choices, samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cgd_ray.config.evaluation import EvaluationSection, EvaluationSet
from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.data.prompt_id import holdout_position
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.evaluation.questions import QuestionSet, question_sets
from cgd_ray.evaluation.run import Student, run_evaluation
from cgd_ray.evaluation.scores import grade_results, score
from cgd_ray.evaluation.verdicts import read_correct, write_verdicts
from cgd_ray.inference.options import ModelRef
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Run
from tests.unit.evaluation.test_heldout import answer
from tests.unit.generation.test_planning import recipe


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def with_sets(root: Path, *sets: Any, **evaluation: Any) -> Recipe:
    tree = recipe(root).model_dump(mode="json")
    return parse_recipe(tree | {"evaluation": {"sets": list(sets), **evaluation}}, "test")


def read(root: Path, *sets: Any, **evaluation: Any) -> list[QuestionSet]:
    return question_sets(open_run(with_sets(root, *sets, **evaluation), Store(str(root / "root"))))


def test_a_local_copy_of_a_benchmark_has_the_hubs_columns(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(9)]
    path = jsonl(tmp_path / "gsm8k.jsonl", rows)
    [found] = read(tmp_path, {"name": "gsm8k", "data": {"type": "jsonl", "path": path}, "limit": 5})
    assert found.rows["prompt"][0].as_py().endswith("?\n\nPut the final answer in \\boxed{}.")
    ids = found.rows["prompt_id"].to_pylist()
    assert len(ids) == 5
    assert ids == sorted(ids, key=holdout_position)
    everything = read(tmp_path, {"name": "gsm8k", "data": {"type": "jsonl", "path": path}}, limit=None)[0].rows
    assert everything["prompt_id"].to_pylist()[:5] == ids
    assert len(everything) == 9


def test_choices_are_shown_by_letters_and_the_reference_is_a_letter(tmp_path: Path) -> None:
    rows = [
        {"question": "Which is even?", "options": ["1", "2", "3"], "answer": "B"},
        {"question": "Which is odd?", "options": ["4", "6", "7"], "answer": "7"},
        {"question": "Which is first?", "options": ["one", "two"], "answer": 0},
        {"question": "Which is last?", "options": {"text": ["y", "z"], "label": ["1", "2"]}, "answer": "2"},
    ]
    path = jsonl(tmp_path / "choices.jsonl", rows)
    [found] = read(tmp_path, {"name": "mmlu-pro", "data": {"type": "jsonl", "path": path}})
    by_prompt = {row["prompt"].partition("\n")[0]: row for row in found.rows.to_pylist()}
    assert {prompt: row["reference"] for prompt, row in by_prompt.items()} == {
        "Which is even?": "B", "Which is odd?": "C", "Which is first?": "A", "Which is last?": "B",
    }  # fmt: skip
    assert "\n\nA. 1\nB. 2\nC. 3\n\nPut the letter" in by_prompt["Which is even?"]["prompt"]


def test_choices_of_several_columns_change_places_by_the_question_alone(tmp_path: Path) -> None:
    names = ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
    rows = [{"Question": f"Q{n}?", **dict(zip(names, "wxyz", strict=True))} for n in range(40)]
    data = {"type": "jsonl", "path": jsonl(tmp_path / "gpqa.jsonl", rows)}
    [first] = read(tmp_path, {"name": "gpqa-diamond", "data": data})
    jsonl(tmp_path / "gpqa.jsonl", rows[::-1])
    [again] = read(tmp_path, {"name": "gpqa-diamond", "data": data})
    columns = ["prompt", "reference"]
    assert first.rows.select(columns).equals(again.rows.select(columns))
    assert set(first.rows["reference"].to_pylist()) == set("ABCD")
    for row in first.rows.to_pylist():
        assert f"{row['reference']}. w\n" in row["prompt"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Q?", "options": ["1", "2"], "answer": "C"}, "'C' is none of the 2 choices"),
        ({"question": "Q?", "options": ["1"], "answer": "A"}, "options: not 2 to 10 texts"),
        ({"question": "Q?", "options": ["1", None], "answer": "A"}, "options: not 2 to 10 texts"),
    ],
)
def test_choices_that_cannot_be_shown_are_refused_with_their_row(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    path = jsonl(tmp_path / "choices.jsonl", [row])
    with pytest.raises(ConfigError, match=r"^evaluation.sets mmlu-pro: .*choices.jsonl:1: ") as raised:
        read(tmp_path, {"name": "mmlu-pro", "data": {"type": "jsonl", "path": path}})
    assert reason in str(raised.value)


def test_questions_without_an_answer_are_skipped_and_none_at_all_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "answer": "5"}, {"prompt": "b?", "answer": None}]
    data = {"type": "jsonl", "path": jsonl(tmp_path / "x.jsonl", rows), "reference_column": "answer"}
    [found] = read(tmp_path, {"name": "own", "data": data})
    assert found.rows["prompt"].to_pylist() == ["a?"]
    jsonl(tmp_path / "x.jsonl", rows[1:])
    with pytest.raises(CgdError, match="none of 1 own prompts has a reference that states an answer"):
        read(tmp_path, {"name": "own", "data": data})


@pytest.mark.parametrize(
    ("sets", "error"),
    [
        (["nothing"], "data of set nothing. Fix: give data"),
        ([{"name": "heldout", "data": {"type": "jsonl", "path": "x", "reference_column": "a"}}], "data of set heldout"),
        ([{"name": "own", "data": {"type": "jsonl", "path": "x"}}], "answers need a reference"),
        ([{"name": "gsm8k", "data": {"limit": 5}}], "limit and holdout do not apply"),
        (["gsm8k", {"name": "gsm8k"}], "two sets have one name"),
        ([{"name": "gsm8k", "samples": 4}], "samples above 1 with temperature 0"),
        ([], "at least 1 item"),
    ],
)
def test_sets_that_cannot_be_meant_are_refused(tmp_path: Path, sets: list[Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        with_sets(tmp_path, *sets)


def test_a_recipe_without_heldout_questions_needs_no_references_of_its_own() -> None:
    assert EvaluationSection().asks_heldout
    assert not EvaluationSection(sets=[EvaluationSet(name="gsm8k")]).asks_heldout


def test_sets_of_one_decoding_are_answered_at_once_and_samples_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"{n}?", "answer": "7"} for n in range(4)]
    data = {"type": "jsonl", "path": jsonl(tmp_path / "x.jsonl", rows), "reference_column": "answer"}
    sampled = {"name": "sampled", "data": data, "samples": 4, "temperature": 0.7}
    made = with_sets(tmp_path, {"name": "one", "data": data}, {"name": "two", "data": data, "limit": 2}, sampled)
    run = open_run(made, Store(str(tmp_path / "root")))
    sets, asked = question_sets(run), list[int]()

    def generate(_run: Any, stage: Any, _model: ModelRef, rows: tuple[pa.Table, pa.Table], _lease: object) -> Any:
        todo = rows[1].to_pylist()
        asked.append(len(todo))
        results = [
            answer(row, row["parent"], "ok", f"the answer is {7 if row['sample'] % 2 == 0 else 8}")
            | {"sample": row["sample"]}
            for row in todo
        ]
        stage.results.write_part(f"part-{stage.attempt:04d}-a-000000", results)
        return {"rows": len(todo)}

    monkeypatch.setattr("cgd_ray.evaluation.run._generate", generate)
    answers = run_evaluation(run, sets, "base", Student(ModelRef("m"), "identity"))
    assert asked == [4, 16]  # the two questions of `two` are among the four of `one`
    assert answers.spent == {"rows": 20}
    graded = {one.name: grade_results(answers.results[one.name], one) for one in sets}
    assert {name: marks.correct.shape for name, marks in graded.items()} == {
        "one": (1, 4),
        "two": (1, 2),
        "sampled": (4, 4),
    }
    scores = score(graded["sampled"], sets[2].rows, 0.95)
    assert scores.accuracy["all"].value == 0.5
    assert scores.pass_at == {2: pytest.approx(5 / 6), 4: 1.0}
    write_verdicts(Run(run.store, "r"), sets, {"base": graded, "trained": graded})
    correct = read_correct({"cgd": Run(run.store, "r")})
    assert list(correct) == ["one", "two", "sampled"]
    assert correct["sampled"]["cgd"].shape == (4, 4)
    assert np.array_equal(correct["sampled"]["base"], correct["sampled"]["cgd"])
