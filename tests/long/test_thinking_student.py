"""A student whose template begins its thinking: trained and scored by real engines, with and without a parser."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.servers import REPOSITORY

pytestmark = pytest.mark.timeout(1800)
GENERATION_PROMPT = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory, student_dir: Path) -> Path:
    """SmolLM2 with the tokens and the generation prompt of models that think before they answer."""
    folder = tmp_path_factory.mktemp("model") / "thinks [1]"
    tokenizer, model = AutoTokenizer.from_pretrained(student_dir), AutoModelForCausalLM.from_pretrained(student_dir)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer))
    begins = repr(GENERATION_PROMPT)[1:-1]
    assert begins in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(begins, f"{begins}<think>\\n")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def run(root: Path, model: Path, **engine: str) -> subprocess.CompletedProcess[str]:
    recipe = yaml.safe_load((REPOSITORY / "jobs/recipes/demo.yaml").read_text())
    recipe["run"] = {"name": "thinking", "root": str(root)}
    recipe["data"] |= {"limit": 24, "holdout": {"count": 4}}
    recipe["student"] = {"model": str(model), "engine": {"type": "vllm", "max_model_len": 2048, **engine}}
    recipe["training"] |= {"method": "distill", "epochs": 4, "learning_rate": 1e-3}
    recipe["evaluation"] = {"max_tokens": 96}
    recipe["serving"] = {"trial": False}
    for key in ("mix",):
        del recipe["training"][key]
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "jobs/pipeline.py", str(root / "recipe.yaml")]
    with tempfile.TemporaryDirectory(prefix="cgd-") as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder}
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1500, check=False
        )


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    return [row for part in (root / "tables" / table).glob("*/*.parquet") for row in pq.read_table(part).to_pylist()]


def test_it_learns_to_end_its_thinking_and_is_scored_by_what_is_behind(root: Path, thinking: Path) -> None:
    done = run(root, thinking, reasoning_parser="qwen3")
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    tokenizer = AutoTokenizer.from_pretrained(thinking)
    encoded = rows(root, "encoded")
    assert encoded
    for row in encoded:
        assert tokenizer.decode(row["input_ids"][: row["target_start"]]).endswith(f"{GENERATION_PROMPT}<think>\n")
        assert tokenizer.decode(row["input_ids"][row["target_start"] :]).startswith("</think>\n\n")
    answers = rows(root, "evaluation")
    ended = [row for row in answers if not row["truncated"]]
    assert {row["model"] for row in ended} == {"trained"}, answers
    assert not [row for row in ended if "think>" in row["text"] or not row["text"].strip()]


def test_without_a_parser_it_is_refused_by_what_it_says(root: Path, thinking: Path) -> None:
    [student] = (root / "runs/thinking").glob("student")
    done = run(root, student)
    assert done.returncode != 0
    assert "</think>" in done.stderr + done.stdout
    assert "set reasoning_parser" in done.stderr + done.stdout
