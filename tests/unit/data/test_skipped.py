"""Rows that cannot be used: left out and counted, shown on request, refused where they are many."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from typer.testing import CliRunner

from cgd_ray.cli import app
from cgd_ray.config.data import JsonlData
from cgd_ray.config.run import StorageSection
from cgd_ray.data.sources import check_source
from cgd_ray.errors import ConfigError
from tests.unit.data.test_prepare import error_of, prepared, rows_of

BAD = {
    b'{"prompt": "  \\n"}': "blank prompt",
    b'{"prompt": null}': "prompt that is no text",
    b'{"prompt": ["a"]}': "prompt that is no text",
    b'{"question": "a"}': "no column prompt",
    b'{"prompt": "a", "gold": {"x": 1}}': "reference that is no text or number",
    b'{"prompt": "a", "gold": NaN}': "reference that is no text or number",
    b'{"prompt": "cut o': "not valid JSON",
    b'{"prompt": "\xff"}': "not valid JSON",
    b'["a"]': "not a JSON object",
    b'{"prompt": "\\ud800", "gold": 1}': "not valid Unicode",
    b'{"prompt": "a"}': "no column gold",
    b'{"prompt": ' + b"[" * 99_999: "nested too deeply",
}


def source(folder: Path, bad: list[bytes], good: int = 300, **options: Any) -> dict[str, Any]:
    """Good rows with the bad ones among them, the first bad one first."""
    lines = [json.dumps({"prompt": f"prompt {number}", "gold": number}).encode() for number in range(good)]
    for place, line in enumerate(bad):
        lines.insert(place * 20, line)
    (folder / "data.jsonl").write_bytes(b"\n".join(lines))
    return {"type": "jsonl", "path": str(folder / "data.jsonl"), **options}


@pytest.mark.parametrize("holdout", [{"fraction": 0.1}, {"count": 7}])
def test_a_few_of_many_are_left_out_and_counted_by_reason(tmp_path: Path, holdout: dict[str, Any]) -> None:
    data = source(tmp_path, list(BAD), holdout=holdout, max_skipped_fraction=0.05)
    with capture_logs() as said:
        made = prepared(tmp_path, data)
    assert (made.train + made.heldout, made.skipped) == (300, len(BAD))
    assert {row["prompt"] for row in rows_of(made).values()} == {f"prompt {number}" for number in range(300)}
    warned = next(line for line in said if line["log_level"] == "warning")
    assert {reason: warned[reason] for reason in BAD.values()} == {
        reason: list(BAD.values()).count(reason) for reason in BAD.values()
    }
    assert prepared(tmp_path, data).skipped == len(BAD)  # the same, read from the table


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_too_many_are_refused_with_the_first_of_them(tmp_path: Path, line: bytes) -> None:
    message = error_of(tmp_path, source(tmp_path, [line] * 4))
    assert "4 of 304 rows cannot be used, more than data.max_skipped_fraction 0.01 allows" in message
    assert f"{tmp_path}/data.jsonl:1" in message
    assert len(message) < 600


def test_none_is_left_out_where_none_may_be(tmp_path: Path) -> None:
    message = error_of(tmp_path, source(tmp_path, [b'{"prompt": ""}'], max_skipped_fraction=0))
    assert message.startswith(f"{tmp_path}/data.jsonl:1: the prompt is empty, not text")


def test_a_table_of_a_run_that_allowed_more_is_looked_at_again(tmp_path: Path) -> None:
    data = source(tmp_path, [b"{"] * 4)
    assert prepared(tmp_path, data | {"max_skipped_fraction": 0.5}).skipped == 4
    assert "4 of 304 rows cannot be used" in error_of(tmp_path, data)
    assert prepared(tmp_path, data | {"max_skipped_fraction": 0.5}).reused


def test_a_source_is_looked_at_beyond_a_bad_first_row(tmp_path: Path) -> None:
    check_source(JsonlData.model_validate(source(tmp_path, list(BAD))), StorageSection())


@pytest.mark.parametrize("most", [0.01, 0])
def test_they_are_shown_on_request_refused_or_not(tmp_path: Path, most: float) -> None:
    data = source(tmp_path, [b'{"prompt": ""}', b"{"], max_skipped_fraction=most)
    recipe = tmp_path / "recipe.yaml"
    tree = {
        "run": {"name": "r", "root": str(tmp_path / "store")},
        "data": data,
        "student": {"model": "s", "engine": {"type": "scripted"}},
        "teacher": {"engine": {"type": "scripted"}},
        "evaluation": {"enabled": False},
    }
    recipe.write_text(json.dumps(tree))
    with contextlib.suppress(ConfigError):
        prepared(tmp_path, data, evaluate=False)
    shown = CliRunner().invoke(app, ["inspect", str(recipe), "--skipped"])
    assert shown.exit_code == 0
    assert f"blank prompt: {tmp_path}/data.jsonl:1: the prompt is empty" in shown.output
    assert f"not valid JSON: {tmp_path}/data.jsonl:21: not valid JSON" in shown.output


def test_a_column_that_only_some_rows_have_is_null_in_the_others(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "hint": "add"}, {"prompt": "c"}, {"prompt": "d", "hint": None}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = "{{ prompt }}{% if hint %} ({{ hint }}){% endif %}"
    data = {"type": "jsonl", "path": str(tmp_path / "data.jsonl"), "prompt_template": template}
    made = prepared(tmp_path, data | {"holdout": {"count": 1}}, evaluate=False)
    assert {row["prompt"] for row in rows_of(made).values()} == {"a", "b (add)", "c", "d"}
    wrong = data | {"prompt_template": "{{ prompt }}{% if hnit %}!{% endif %}"}
    assert "'hnit' is undefined" in error_of(tmp_path, wrong, evaluate=False)


TEMPLATE = "{{ prompt }} {{ ctx }}"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1], "a list"),
        ({"a": 1}, "an object"),
        (True, "a truth value"),
        (None, "null"),
    ],
)
@pytest.mark.parametrize("holdout", [{"fraction": 0.1}, {"count": 7}])
def test_a_row_whose_column_does_not_fit_the_template_is_counted(
    tmp_path: Path, value: object, found: str, holdout: dict[str, Any]
) -> None:
    rows = [{"prompt": f"p{n}", "ctx": "c"} for n in range(300)] + [{"prompt": "odd", "ctx": value}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"type": "jsonl", "path": str(tmp_path / "data.jsonl"), "prompt_template": TEMPLATE, "holdout": holdout}
    made = prepared(tmp_path, data, evaluate=False)
    assert (made.train + made.heldout, made.skipped) == (300, 1)
    message = error_of(tmp_path, data | {"max_skipped_fraction": 0}, evaluate=False)
    assert message.startswith(
        f"{tmp_path}/data.jsonl:301: data.prompt_template uses the column 'ctx', which is {found} here"
    )
    assert ". Fix: correct the row, or " in message


def test_numbers_reach_the_template_as_the_file_writes_them(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "p{n}", "ctx": {number}}}' for n, number in enumerate(["5", "1.50", "1e400", '"5"', "-0.0"])]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    data = {"type": "jsonl", "path": str(tmp_path / "data.jsonl"), "prompt_template": TEMPLATE, "holdout": {"count": 1}}
    made = prepared(tmp_path, data, evaluate=False)
    assert {row["prompt"] for row in rows_of(made).values()} == {"p0 5", "p1 1.50", "p2 1e400", "p3 5", "p4 -0.0"}


def test_a_null_is_not_blamed_for_a_misspelt_column(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "ctx": null}\n{"prompt": "b", "ctx": "c"}\n')
    template = "{% if ctx %}{{ ctx }}{% endif %}{{ promt }}{% for n in range(2) %}{{ n }}{% endfor %}"
    data = {"type": "jsonl", "path": str(tmp_path / "data.jsonl"), "prompt_template": template}
    assert "'promt' is undefined" in error_of(tmp_path, data, evaluate=False)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(), min_size=1, max_size=20))
def test_any_text_comes_through_unchanged_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [{"prompt": text} for text in [*texts, "first", "second"]]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"type": "jsonl", "path": str(folder / "data.jsonl"), "holdout": {"count": 1}, "max_skipped_fraction": 0.99}
    made = prepared(folder, data, evaluate=False)
    kept = {row["prompt"] for row in rows_of(made).values()}
    assert kept <= {*texts, "first", "second"}
    assert made.train + made.heldout + made.duplicates + made.skipped == len(rows)


def test_rows_that_cannot_be_used_are_named_before_a_count_that_they_leave_too_small(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "gold": 1}\n{"prompt": 7, "gold": 2}\n')
    data = {"type": "jsonl", "path": str(tmp_path / "data.jsonl"), "holdout": {"count": 2}}
    assert error_of(tmp_path, data).startswith(
        f"{tmp_path}/data.jsonl:2: the prompt is int 7, not text. Fix: correct the row"
    )
