"""Conversations of other people's data sets: the question, what stands before it, the answer behind it."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.data.messages import Asked, read_messages
from cgd_ray.data.prepare import prepare_prompts
from cgd_ray.data.skipped import RowError
from cgd_ray.errors import ConfigError
from cgd_ray.pipeline.preflight import preflight
from cgd_ray.prompts.conversation import Turn
from cgd_ray.storage.filesystem import Store

OPENAI = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 more?"},
    {"role": "assistant", "content": "7"},
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(message["role"], message["role"]), "value": message["content"]}
    for message in OPENAI
]
HISTORY = (Turn("system", "Be short."), Turn("user", "2 + 2?"), Turn("assistant", "4"))


def read(value: object) -> Asked:
    return read_messages(value, "f:1", "data.messages_column 'm'")


@pytest.mark.parametrize(
    "value",
    [
        OPENAI,
        SHAREGPT,
        json.dumps(OPENAI),
        json.dumps(OPENAI).encode(),
        json.dumps({"from": ["system", "prompter", "ai", "human", "bot"], "text": [m["content"] for m in OPENAI]}),
        {"role": [message["role"] for message in OPENAI], "content": [message["content"] for message in OPENAI]},
        [{**message, "from": None, "value": None, "tool_calls": None, "weight": 1} for message in OPENAI],
        [{"role": None, "content": None, **message} for message in SHAREGPT],
        [
            {**message, "content": [{"type": "text", "text": message["content"], "image_url": None}]}
            for message in OPENAI
        ],
        [{**message, "role": message["role"].replace("system", "developer").upper()} for message in OPENAI],
    ],
)
def test_every_form_of_a_conversation_is_the_same(value: object) -> None:
    assert read(value) == Asked(HISTORY, "And 3 more?", "7")


def test_what_is_not_there_is_left_out() -> None:
    assert read(OPENAI[:4]) == Asked(HISTORY, "And 3 more?", None)
    assert read(OPENAI[1:2]) == Asked((), "2 + 2?", None)
    for nothing in ("", " ", None):
        assert read([{"role": "system", "content": nothing}, *OPENAI[1:3]]) == Asked((), "2 + 2?", "4")
        assert read([OPENAI[1], {"role": "system", "content": nothing}]) == Asked((), "2 + 2?", None)
        assert read([OPENAI[1], {"role": "assistant", "content": nothing}]) == Asked((), "2 + 2?", None)
    empty = {"tool_calls": [None], "function_call": {"name": None, "arguments": None}, "tools": "[]", "images": []}
    assert read([{**OPENAI[1], **empty}]) == Asked((), "2 + 2?", None)


def user(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": "x", **fields}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "not a list of messages"),
        ("Hello", "not a list of messages"),
        (["Hello"], "not a list of messages"),
        ({"role": ["user"], "content": []}, "not a list of messages"),
        ([], "no message is the user's"),
        ([OPENAI[0]], "no message is the user's"),
        ([user(), {"role": "tool", "content": "4"}], "message 2 is of a tool"),
        ([{"from": "observation", "value": "4"}], "message 1 is of a tool"),
        ([user(), {"from": "tool_response", "value": "4"}], "message 2 is of a tool"),
        ([user(), {"from": "function-call", "value": "4"}], "message 2 is of a tool"),
        ([user(), {"role": "assistant", "tool_calls": [{"id": "1"}]}], "message 2 has tool_calls: no stage here can"),
        ([user(), {"role": "assistant", "function_call": {"name": "f"}}], "message 2 has function_call"),
        ([{**OPENAI[0], "tools": '[{}, {"name": "f"}]'}, user()], "message 1 has tools"),
        ([user(images=["a.jpg"])], "message 1 has images: no stage here can show them"),
        ([user(audio={"path": None, "bytes": b"RIFF"})], "message 1 has audio"),
        ([user(content=[{"type": "image_url", "image_url": {}}])], "part of type 'image_url', not text"),
        ([user(content=[{"type": "text", "text": "x", "image": "data:"}])], "a part of message 1 has image: no stage"),
        ([user(content=[{"text": "x", "image_url": {"url": "u"}}])], "a part of message 1 has image_url"),
        ([user(image_url="u")], "message 1 has image_url"),
        ([user(content="\u200b"), OPENAI[2], user()], "a message before the question is empty"),
        ([user(content=[{"type": "text", "text": None}])], "holds a part without text"),
        ([user(content=3)], "message 1 has no text"),
        ([user(role="critic")], "message 1 has role 'critic', not system, user or assistant"),
        ([{"input": "x", "output": "y"}], "message 1 has the keys input, output and no role"),
        ([user(), OPENAI[0], user()], "a system message stands behind others"),
        ([user(), user()], "do not alternate"),
        ([OPENAI[2], user()], "do not alternate, the user's first"),
        ([user(content=" "), OPENAI[2], user()], "a message before the question is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_row(value: object, said: str) -> None:
    with pytest.raises(RowError) as caught:
        read(value)
    assert str(caught.value).startswith("f:1: data.messages_column 'm': ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.reason


def test_a_part_with_empty_fields_for_media_is_text() -> None:
    parts = [{"type": "text", "text": "x", "image": None, "image_url": {"url": None}}]
    assert read([user(content=parts)]).question == "x"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "type", "text", "tool_calls"]), inner)
    ),
    max_leaves=12,
)


@given(value=JSON)
def test_any_value_is_read_or_refused(value: object) -> None:
    try:
        asked = read(value)
    except RowError:
        return
    assert isinstance(asked.question, str)


def recipe(tmp_path: Path, data: dict[str, Any], **sections: Any) -> Recipe:
    tree = {
        "run": {"name": "r", "root": str(tmp_path / "root")},
        "data": {"messages_column": "messages", "holdout": {"fraction": 0.01}} | data,
        "student": {"model": "s", "engine": {"type": "scripted"}},
        "teacher": {"engine": {"type": "scripted"}},
        "evaluation": {"enabled": False},
        **sections,
    }
    return parse_recipe(tree, "r.yaml")


def rows(made: Recipe) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = prepare_prompts(made, Store(made.run.root)).table.read().to_pylist()
    return found


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hf"])
def test_conversations_come_from_every_source(tmp_path: Path, kind: str) -> None:
    spoken = [OPENAI, OPENAI[1:], SHAREGPT[1:2] if kind == "jsonl" else OPENAI[1:2]]
    path = tmp_path / f"data.{kind}"
    match kind:
        case "jsonl":
            path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in spoken))
        case "parquet":
            pq.write_table(pa.table({"messages": spoken, "unused": [1, 2, 3]}), path)
        case "hf":
            datasets.Dataset.from_dict({"messages": spoken}).save_to_disk(path)
    data = {"type": kind, "dataset" if kind == "hf" else "path": str(path), "reference_column": "messages"}
    found = rows(recipe(tmp_path, data))
    by_length = sorted(found, key=lambda row: len(row["history"] or []))
    assert [row["history"] for row in by_length] == [None, OPENAI[1:3], OPENAI[:3]]
    assert [row["prompt"] for row in by_length] == ["2 + 2?", "And 3 more?", "And 3 more?"]
    assert [row["reference"] for row in by_length] == [None, "7", "7"]
    assert len({row["prompt_id"] for row in found}) == 3


def test_a_system_prompt_stands_before_what_has_none(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in (OPENAI, OPENAI[1:])))
    data = {"type": "jsonl", "path": str(path)}
    plain, given = rows(recipe(tmp_path, data)), rows(recipe(tmp_path, data | {"system_prompt": "Be kind."}))
    assert sorted(row["history"][0]["content"] for row in given) == ["Be kind.", "Be short."]
    assert len({row["prompt_id"] for row in plain + given}) == 3


def test_the_turn_behind_is_the_reference_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": OPENAI, "gold": "#### 7"}) + "\n")
    for column, reference in (("gold", "#### 7"), ("messages", "7"), (None, None)):
        [row] = rows(recipe(tmp_path, {"type": "jsonl", "path": str(path), "reference_column": column}))
        assert row["reference"] == reference


def test_a_few_with_tools_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    tools = [user(), {"role": "tool", "content": "4"}]
    spoken = [[user(content=f"question {number}")] for number in range(150)]
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in (*spoken, tools)))
    made = recipe(tmp_path, {"type": "jsonl", "path": str(path)})
    prepared = prepare_prompts(made, Store(made.run.root))
    assert (prepared.skipped, prepared.systems, prepared.exchanges) == (1, 0, 0)
    assert (prepared.table.description() or {})["skipped"]["reasons"] == {"tools": 1}


def test_a_missing_column_names_its_key(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(ConfigError, match=r"^data\.messages_column 'messages': no such column.*prompt"):
        preflight(recipe(tmp_path, {"type": "jsonl", "path": str(path)}))


def lines(path: Path, *values: dict[str, Any]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return {"type": "jsonl", "path": str(path), "max_skipped_fraction": 0.9}


ASKED = [{"from": "human", "value": "<image>\nWho are you?"}]


@pytest.mark.parametrize("column", ["tools", "functions", "image", "images", "audio", "videos"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hf"])
def test_what_stands_beside_a_conversation_is_not_lost(tmp_path: Path, column: str, kind: str) -> None:
    good, bad = {"messages": ASKED, column: None}, {"messages": [{**ASKED[0], "value": "x"}], column: ["something"]}
    path = tmp_path / f"data.{kind}"
    match kind:
        case "jsonl":
            lines(path, good, bad)
        case "parquet":
            pq.write_table(pa.Table.from_pylist([good, bad]), path)
        case "hf":
            datasets.Dataset.from_list([good, bad]).save_to_disk(path)
    data = {"type": kind, "dataset" if kind == "hf" else "path": str(path), "max_skipped_fraction": 0.9}
    made = recipe(tmp_path, data)
    assert [row["prompt"] for row in rows(made)] == ["<image>\nWho are you?"]
    reason = "tools" if column in ("tools", "functions") else "images or other media"
    assert (prepare_prompts(made, Store(made.run.root)).table.description() or {})["skipped"]["reasons"] == {reason: 1}


def test_a_system_column_tells_conversations_apart(tmp_path: Path) -> None:
    spoken = [{"messages": ASKED, "system": who} for who in ("You are a pirate.", "You are a king.", "", None)]
    data = lines(tmp_path / "data.jsonl", *spoken, {"messages": [OPENAI[0], *ASKED], "system": "You are a pirate."})
    found = rows(recipe(tmp_path, data | {"system_prompt": "Be kind."}))
    shown = ["Be kind.", "Be short.", "You are a king.", "You are a pirate."]
    assert sorted(row["history"][0]["content"] for row in found) == shown
    assert {len(row["history"]) for row in found} == {1}


def test_a_completion_beside_a_prompt_of_messages_is_the_reference(tmp_path: Path) -> None:
    completion = [{"role": "assistant", "content": "I am."}]
    data = lines(tmp_path / "data.jsonl", {"prompt": ASKED, "completion": completion})
    [row] = rows(recipe(tmp_path, data | {"messages_column": "prompt", "reference_column": "completion"}))
    assert row["reference"] == "I am."


def test_messages_in_the_prompt_column_are_recognised(tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", {"prompt": ASKED}) | {"messages_column": None}
    with pytest.raises(ConfigError, match=r"for conversations set data\.messages_column=prompt"):
        rows(recipe(tmp_path, data))


def test_references_that_no_conversation_has_are_missed_before_anything_is_paid_for(tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", *({"messages": [user(content=f"{n}")]} for n in range(9)))
    training = {"method": "sft"}
    with pytest.raises(ConfigError, match=r"training\.method sft needs references. Fix: set data\.reference_column"):
        recipe(tmp_path, data, training=training)
    made = recipe(tmp_path, data | {"reference_column": "messages"}, training=training)
    with pytest.raises(ConfigError, match=r"^training\.method sft needs references and none of data\.path"):
        prepare_prompts(made, Store(made.run.root))


def test_no_prompt_has_the_id_of_a_conversation(tmp_path: Path) -> None:
    text = json.dumps([["system", "a"], ["user", "b"]])
    spoken = [{"messages": [user(content=text)]}, {"messages": [{"role": "system", "content": "a"}, user(content="b")]}]
    assert len(rows(recipe(tmp_path, lines(tmp_path / "data.jsonl", *spoken)))) == 2
