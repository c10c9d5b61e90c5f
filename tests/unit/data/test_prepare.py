import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from cgd_ray.config.recipe import Recipe
from cgd_ray.data import prepare
from cgd_ray.data.prepare import PreparedPrompts, prepare_prompts
from cgd_ray.data.prompt_id import canonical, holdout_position, prompt_id
from cgd_ray.errors import ConfigError
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.tables import Table

Row = dict[str, Any]


def recipe(data: dict[str, Any], *, evaluate: bool = True, seed: int = 0) -> Recipe:
    if evaluate and data["type"] != "demo":
        data = {"reference_column": "gold", **data}
    return Recipe.model_validate(
        {
            "run": {"name": "test", "root": "/nowhere", "seed": seed},
            "data": data,
            "student": {"model": "student"},
            "teacher": {"engine": {"type": "scripted"}},
            "evaluation": {"enabled": evaluate},
        }
    )


def prepared(root: Path, data: dict[str, Any], **options: Any) -> PreparedPrompts:
    return prepare_prompts(recipe(data, **options), Store(str(root / "store")))


def rows_of(result: PreparedPrompts) -> dict[str, Row]:
    return {row["prompt_id"]: row for row in result.table.read().to_pylist()}


def ids_of(result: PreparedPrompts) -> dict[str, str]:
    return {identity: row["split"] for identity, row in rows_of(result).items()}


def jsonl(root: Path, prompts: list[str], **options: Any) -> dict[str, Any]:
    path = root / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "gold": len(prompt)}) + "\n" for prompt in prompts))
    return {"type": "jsonl", "path": str(path), **options}


def error_of(root: Path, data: dict[str, Any], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        prepared(root, data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_carry_everything_and_the_split_is_the_position(tmp_path: Path) -> None:
    prompts = [f"What is {i} + 1?" for i in range(200)]
    result = prepared(tmp_path, jsonl(tmp_path, prompts, reference_column="gold"))
    rows = rows_of(result)
    assert set(rows) == {prompt_id(prompt) for prompt in prompts}
    for identity, row in rows.items():
        assert row["split"] == ("heldout" if holdout_position(identity) < 0.1 else "train")
    assert rows[prompt_id(prompts[7])] == {
        "prompt_id": prompt_id(prompts[7]),
        "split": rows[prompt_id(prompts[7])]["split"],
        "prompt": prompts[7],
        "reference": str(len(prompts[7])),
        "kind": None,
        "novel": False,
        "source": f"{tmp_path}/data.jsonl:8",
        "history": None,
    }
    assert (result.train, result.heldout, result.duplicates) == (
        sum(row["split"] == "train" for row in rows.values()),
        sum(row["split"] == "heldout" for row in rows.values()),
        0,
    )


def test_duplicates_are_merged_into_the_first_and_counted(tmp_path: Path) -> None:
    prompts = ["a b", "a  b", "c", "a b\n", "A b", "cafe\u0301", "caf\u00e9"]
    result = prepared(tmp_path, jsonl(tmp_path, prompts), evaluate=False)
    assert sorted(row["prompt"] for row in rows_of(result).values()) == sorted(["a b", "c", "A b", "cafe\u0301"])
    assert result.duplicates == 3


def test_the_template_sees_the_text_columns_and_decides_identity(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    # `source` and `name` are also the names of the renderer's own parameters.
    path.write_text(
        '{"prompt": "Which?", "source": "a {{ b }}", "name": "N", "hint": null, "n": 3}\n'
        '{"prompt": "Which?", "source": "c", "name": "N", "hint": "h", "n": 3}\n'
    )
    template = "{{ source }} {{ name }}: {{ prompt }}{% if hint %} ({{ hint }}){% endif %}"
    data = {"type": "jsonl", "path": str(path), "prompt_template": template}
    result = prepared(tmp_path, data, evaluate=False)
    texts = {row["prompt"] for row in rows_of(result).values()}
    assert texts == {"a {{ b }} N: Which?", "c N: Which? (h)"}
    assert all(identity == prompt_id(row["prompt"]) for identity, row in rows_of(result).items())


def test_templates_that_cannot_work_are_one_line(tmp_path: Path) -> None:
    data = jsonl(tmp_path, ["x", "y"])
    assert "data.prompt_template" in error_of(tmp_path, data | {"prompt_template": "{{ nothing }}"})
    assert "data.prompt_template" in error_of(tmp_path, data | {"prompt_template": "{% if %}"})
    assert "renders an empty prompt for" in error_of(tmp_path, data | {"prompt_template": "{# nothing #}"})
    demo = {"type": "demo", "prompt_template": "Solve it."}
    assert "use {{ prompt }} in it" in error_of(tmp_path, demo)


def test_text_that_is_no_unicode_names_its_row(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": "\\ud800"}\n')
    message = error_of(tmp_path, {"type": "jsonl", "path": str(path)}, evaluate=False)
    assert message.startswith(f"{path}:2: the text is not valid Unicode")


def test_a_second_call_reuses_the_table_and_reads_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jsonl(tmp_path, [f"prompt {i}" for i in range(50)])
    first = prepared(tmp_path, data)
    monkeypatch.setattr(prepare, "split_source", lambda *_: pytest.fail("read again"))
    second = prepared(tmp_path, data)
    assert (first.reused, second.reused) == (False, True)
    assert (second.train, second.heldout, second.duplicates) == (first.train, first.heldout, first.duplicates)
    assert second.table == first.table


def test_what_an_interrupted_call_left_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jsonl(tmp_path, [f"prompt {i}" for i in range(50)])
    monkeypatch.setattr(prepare, "PART_ROWS", 8)
    write_part = Table.write_part

    def dies_at_the_third(self: Table, part: str, rows: pa.Table) -> None:
        if part == "part-000002":
            raise KeyboardInterrupt
        write_part(self, part, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Table, "write_part", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, data)
    result = prepared(tmp_path, data)
    assert not result.reused
    assert len(result.table.parts()) == 7
    assert len(result.table.read()) == result.train + result.heldout == 50


def test_the_fingerprint_follows_what_decides_the_content(tmp_path: Path) -> None:
    data = jsonl(tmp_path, [f"prompt {i}" for i in range(50)])
    first = prepared(tmp_path, data).table.fingerprint
    assert prepared(tmp_path, data, seed=5).table.fingerprint == first
    assert prepared(tmp_path, data | {"limit": 3}, evaluate=False).table.fingerprint != first
    assert prepared(tmp_path, data | {"prompt_template": "Q: {{ prompt }}"}).table.fingerprint != first
    other = jsonl(tmp_path, [f"prompt {i}" for i in range(49)] + ["prompt x"])
    assert prepared(tmp_path, other).table.fingerprint != first
    demo = {"type": "demo", "limit": 4, "holdout": {"count": 3}}
    by_run_seed = prepared(tmp_path, demo, seed=5).table.fingerprint
    assert prepared(tmp_path, demo | {"seed": 5}).table.fingerprint == by_run_seed
    assert prepared(tmp_path, demo).table.fingerprint != by_run_seed


def test_a_count_holds_out_the_smallest_positions(tmp_path: Path) -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    data = jsonl(tmp_path, [*prompts, *prompts[:10]], holdout={"count": 12}, limit=5)
    result = prepared(tmp_path, data)
    by_position = sorted(map(prompt_id, prompts), key=holdout_position)
    splits = ids_of(result)
    assert {identity for identity, split in splits.items() if split == "heldout"} == set(by_position[:12])
    expected = [identity for identity in map(prompt_id, prompts) if identity in by_position[12:]][:5]
    assert {identity for identity, split in splits.items() if split == "train"} == set(expected)


@pytest.mark.parametrize("count", [40, 50])
def test_a_count_that_leaves_nothing_is_refused(tmp_path: Path, count: int) -> None:
    prompts = [f"prompt {i}" for i in range(40)] * 2
    message = error_of(tmp_path, jsonl(tmp_path, prompts, holdout={"count": count}))
    problem = f"data.holdout.count {count} is not smaller than the 40 distinct prompts of data.path"
    assert message.startswith(f"{problem} {tmp_path}/data.jsonl. Fix: ")


def test_nothing_to_train_on_or_to_evaluate_on_is_refused(tmp_path: Path) -> None:
    everything = jsonl(tmp_path, ["x", "y"], holdout={"fraction": 0.9999999})
    assert "none is left to train on" in error_of(tmp_path, everything)
    assert "none is left to train on" in error_of(tmp_path, everything)  # the table is complete now, and still no use
    nothing = jsonl(tmp_path, ["x", "y"], holdout={"fraction": 1e-9})
    assert "evaluation.enabled=false" in error_of(tmp_path, nothing)
    assert prepared(tmp_path, nothing, evaluate=False).heldout == 0


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.integers(0, 40).map(str), min_size=3, max_size=60),
    holdout=st.one_of(
        st.floats(0.05, 0.9).map(lambda fraction: {"fraction": fraction}),
        st.integers(1, 10).map(lambda count: {"count": count}),
    ),
    limits=st.tuples(st.integers(1, 30), st.integers(1, 30)).map(sorted),
)
def test_growing_the_limit_moves_no_prompt(prompts: list[str], holdout: Row, limits: list[int]) -> None:
    assume(len(set(prompts)) > holdout.get("count", 0))
    assume(any(holdout_position(prompt_id(prompt)) >= holdout.get("fraction", 0) for prompt in prompts))
    with tempfile.TemporaryDirectory() as folder:
        data = jsonl(Path(folder), prompts, holdout=holdout)
        small, large = (ids_of(prepared(Path(folder), data | {"limit": limit}, evaluate=False)) for limit in limits)
    assert small.items() <= large.items()
    assert sum(split == "train" for split in small.values()) <= limits[0]
    in_order = list(dict.fromkeys(map(prompt_id, prompts)))
    train = [identity for identity in in_order if large.get(identity) == "train"]
    assert [identity for identity in train if small.get(identity) == "train"] == train[: limits[0]]


def demo(limit: int, count: int, **options: Any) -> dict[str, Any]:
    return {"type": "demo", "limit": limit, "holdout": {"count": count}, **options}


def test_demo_sizes_kinds_and_references(tmp_path: Path) -> None:
    result = prepared(tmp_path, demo(60, 32))
    rows = list(rows_of(result).values())
    assert (result.train, result.heldout) == (60, 32)
    heldout = [row for row in rows if row["split"] == "heldout"]
    train = [row for row in rows if row["split"] == "train"]
    assert sum(row["novel"] for row in heldout) == 10
    assert not any(row["novel"] for row in train)
    assert not {row["kind"] for row in train} & {row["kind"] for row in heldout if row["novel"]}
    assert all(re.search(r"\\boxed\{[^{}]+\}\.$", row["reference"]) for row in rows)


@settings(max_examples=15, deadline=None)
@given(
    limits=st.tuples(st.integers(1, 120), st.integers(1, 120)).map(sorted),
    counts=st.tuples(st.integers(1, 90), st.integers(1, 90)).map(sorted),
)
def test_growing_the_demo_moves_no_problem(limits: list[int], counts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small, large = (
            ids_of(prepared(Path(folder), demo(limit, count), seed=3))
            for limit, count in zip(limits, counts, strict=True)
        )
    assert small.items() <= large.items()
    assert sorted(large.values()) == ["heldout"] * counts[1] + ["train"] * limits[1]


def test_a_demo_fraction_is_a_share_of_both_parts(tmp_path: Path) -> None:
    data = {"type": "demo", "limit": 90, "holdout": {"fraction": 0.25}}
    result = prepared(tmp_path, data)
    assert (result.train, result.heldout) == (90, 30)


def test_the_demo_differs_by_seed(tmp_path: Path) -> None:
    one, two = (ids_of(prepared(tmp_path, demo(30, 9), seed=seed)) for seed in (1, 2))
    assert not one.keys() & two.keys()


@pytest.mark.parametrize(
    ("references", "kept", "contradictions"),
    [
        ([None, "4"], "4", 0),
        (["", "4", None], "4", 0),
        (["4", None], "4", 0),
        (["4", " 4 "], "4", 0),
        (["2 + 2 = 4\n#### 4", "so #### 4"], "2 + 2 = 4\n#### 4", 0),
        (["4", "5", "4", "6"], "4", 2),
        ([None, "4", "5"], "4", 1),
        ([None, None], None, 0),
    ],
)
def test_a_reference_is_kept_wherever_it_is_given(
    tmp_path: Path, references: list[str | None], kept: str | None, contradictions: int
) -> None:
    rows = [{"prompt": "a", "gold": reference} for reference in references] + [{"prompt": "b", "gold": "1"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"type": "jsonl", "path": str(tmp_path / "data.jsonl"), "reference_column": "gold", "holdout": {"count": 1}}
    with capture_logs() as said:
        made = prepared(tmp_path, data, evaluate=False)
    assert rows_of(made)[prompt_id("a")]["reference"] == kept
    assert made.contradictions == contradictions
    warned = [line for line in said if "other references" in line["event"]]
    assert [line["rows"] for line in warned] == ([contradictions] if contradictions else [])


SAME = [
    ("What is\n2 + 2?", "What  is 2 + 2? "),
    ("What is 2\u200b + 2?", "What is 2 + 2?"),
    ("\ufeffWhat is 2?", "What is 2?"),
    ("".join(chr(ord(letter) + 0xFEE0) for letter in "What2?"), "What2?"),
    ("What\u3000is 2?", "What is 2?"),
    ("caf\u00e9", "cafe\u0301"),
    ("def f():\n    return 1\n\n", "def f():\n\n    return  1"),
]
OTHER = [
    ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
    ("a:\n b", "a:\n  b"),
    ("What is x?", "What is X?"),
    ("5\u00b2", "52"),
    ("ab", "a b"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_differs_in_typing_alone_is_one_prompt(one: str, other: str) -> None:
    assert prompt_id(one) == prompt_id(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_may_mean_something_else_is_another_prompt(one: str, other: str) -> None:
    assert prompt_id(one) != prompt_id(other)


@given(st.text())
def test_a_canonical_form_is_its_own(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)
