"""A data set of conversations the whole way: real engines, training in several turns, evaluation, one served answer."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

from cgd_ray.data.demo.problems import demo_rows
from cgd_ray.prompts.chat_encoder import ChatEncoder
from cgd_ray.prompts.conversation import history_of, with_history
from tests.servers import REPOSITORY, engines_left

pytestmark = pytest.mark.timeout(1800)
SYSTEM = "You teach numbers to children."
ROWS = 6
SMALL = [
    "generation.draft.max_tokens=200",
    "generation.critique.reference=none",
    "generation.critique.max_tokens=256",
    "generation.refine.max_tokens=256",
    "curation.require_correct=false",
    "curation.require_verdict=false",
    "training.epochs=1",
    "training.batch_size=4",
    "training.context=multi-turn",
    "evaluation.max_tokens=24",
]


def conversations() -> list[list[dict[str, str]]]:
    """As ShareGPT writes them: a question, its answer, another question; half with a system turn of their own."""
    problems = itertools.islice(demo_rows(0, 2, novel=False), 2 * ROWS)
    made = []
    for number, (one, other) in enumerate(zip(problems, problems, strict=True)):
        spoken = [("system", "Be short.")] if number % 2 else []
        for problem in (one, other):
            spoken += [("human", problem.prompt), ("gpt", str(problem.reference))]
        made.append([{"from": role, "value": text} for role, text in spoken])
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def output(root: Path) -> str:
    recipe = yaml.safe_load((REPOSITORY / "jobs/recipes/demo.yaml").read_text())
    file = root / "conversations.jsonl"
    file.write_text("".join(json.dumps({"conversations": one}) + "\n" for one in conversations()))
    recipe["data"] = {
        "type": "jsonl",
        "path": str(file),
        "messages_column": "conversations",
        "system_prompt": SYSTEM,
        "reference_column": "conversations",
        "holdout": {"count": 2},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "jobs/pipeline.py", str(root / "recipe.yaml"), *SMALL, f"run.root={root}"]
    with tempfile.TemporaryDirectory(prefix="cgd-") as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1500, check=False
        )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    return [row for part in (root / "tables" / table).glob("*/*.parquet") for row in pq.read_table(part).to_pylist()]


@pytest.mark.usefixtures("output")
def test_every_turn_is_sent_as_training_encodes_it(root: Path, student_dir: Path) -> None:
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(student_dir), {})
    prompts = {row["prompt_id"]: row for row in rows(root, "prompts")}
    assert sorted(row["history"][0]["content"] for row in prompts.values()) == ["Be short."] * 3 + [SYSTEM] * 3
    turns = {key: with_history(row["prompt"], history_of(row["history"])) for key, row in prompts.items()}
    assert {len(one) for one in turns.values()} == {4}
    sent = [*rows(root, "draft"), *rows(root, "evaluation")]
    assert len(sent) == ROWS - 2 + 2 * 2
    assert [row["prompt_tokens"] for row in sent] == [len(encoder.prompt_ids(turns[row["prompt_id"]])) for row in sent]
    examples = {row["prompt_id"]: row for row in rows(root, "examples")}
    for row in rows(root, "encoded"):
        begun = encoder.prompt_ids(turns[row["prompt_id"]])
        assert row["input_ids"][: len(begun)] == begun
        shown = encoder.tokenizer.decode(row["input_ids"][len(begun) : row["target_start"]])
        assert (examples[row["prompt_id"]]["draft"] in shown) == (row["view"] == "cgd")
    assert {row["view"] for row in rows(root, "encoded")} >= {"cgd"}


def test_the_student_is_served_with_all_turns(output: str) -> None:
    assert "trained student (served)" in output
    assert engines_left() == []
