"""A student whose template opens a thinking block: drafted, trained and scored by real engines; refused unparsed."""

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from cgd_ray.data.demo.problems import demo_rows
from tests.servers import REPOSITORY, engines_left

pytestmark = pytest.mark.timeout(2400)
OPENING = "<|im_start|>assistant\n<think>\n"
STEPS = 40
ROWS = 24  # a stage stops for failed rows once it has started 20


def _tokenizer_that_opens_thinking(student: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.add_tokens(["<think>", "</think>"])
    prompt = OPENING.removesuffix("<think>\n")
    assert prompt in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(prompt, OPENING)
    return tokenizer


def _train_to_close(model: Any, tokenizer: Any) -> None:
    """Take some steps on solved problems: the model thinks a line, closes the block, and answers."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for problem in itertools.islice(demo_rows(1, 1, novel=False), STEPS):
        turn = [{"role": "user", "content": problem.prompt}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        answer = f"Step by step.\n</think>\n\n{problem.reference}<|im_end|>"
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[:, :start] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory, student_dir: Path) -> Path:
    """SmolLM2 as a model that thinks before it answers, in a folder whose name a glob would not match."""
    folder = tmp_path_factory.mktemp("model") / "thinks [1]"
    tokenizer = _tokenizer_that_opens_thinking(student_dir)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    old, *new = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<think>", "</think>"])
    with torch.no_grad():  # few steps do not learn to write a token that begins as the mean of all
        weights = model.get_input_embeddings().weight
        weights[new] = weights[old].clone()
    _train_to_close(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def run(root: Path, model: Path, *overrides: str, **engine: str) -> subprocess.CompletedProcess[str]:
    recipe = yaml.safe_load((REPOSITORY / "jobs/recipes/demo.yaml").read_text())
    recipe["run"]["root"] = str(root)
    recipe["student"] = {"model": str(model), "engine": recipe["student"]["engine"] | engine}
    recipe["curation"] = {"require_correct": False, "require_verdict": False}
    recipe["serving"] = {"trial": False}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "jobs/pipeline.py", str(root / "recipe.yaml"), *overrides]
    with tempfile.TemporaryDirectory(prefix="cgd-") as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder}
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    return [row for part in (root / "tables" / table).glob("*/*.parquet") for row in pq.read_table(part).to_pylist()]


def test_thinking_is_cut_off_in_drafts_training_and_evaluation(root: Path, thinking: Path) -> None:
    done = run(root, thinking, reasoning_parser="qwen3")
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    drafts = [row for row in rows(root, "draft") if row["status"] == "ok"]
    assert drafts
    assert not [row for row in drafts if "think>" in row["text"] or "Step by step" in row["text"]]
    tokenizer = AutoTokenizer.from_pretrained(thinking)
    encoded = rows(root, "encoded")
    assert encoded
    for row in encoded:
        assert tokenizer.decode(row["input_ids"][: row["target_start"]]).endswith(OPENING)
        assert tokenizer.decode(row["input_ids"][row["target_start"] :]).startswith("</think>\n\n")
    answers = [row for row in rows(root, "evaluation") if row["status"] == "ok"]
    assert len({row["model"] for row in answers}) == 2  # base and trained: neither ends inside its thinking
    assert not [row for row in answers if "think>" in row["text"] or not row["text"].strip()]
    assert engines_left() == []


def test_without_a_parser_its_drafts_stop_the_run_with_the_fix(root: Path, thinking: Path) -> None:
    criticised = len(rows(root, "critique"))
    done = run(root, thinking, "run.name=unparsed", f"data.limit={ROWS}", "generation.draft.max_tokens=48")
    assert done.returncode != 0
    assert "</think>" in done.stderr
    assert "set reasoning_parser" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(rows(root, "critique")) == criticised
    assert engines_left() == []
