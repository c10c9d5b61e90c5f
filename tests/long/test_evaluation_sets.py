"""Several sets of questions, answered by real engines: benchmarks from local copies, choices, samples, a gate."""

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

from tests.servers import REPOSITORY, engines_left

pytestmark = pytest.mark.timeout(2400)
QUESTIONS = 6


def jsonl(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"type": "jsonl", "path": str(path)}


def sets(folder: Path) -> list[Any]:
    """With the hub's columns of each benchmark."""
    numbers = range(2, 2 + QUESTIONS)
    sums = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in numbers]
    formulas = [{"problem": f"What is half of ${n}$?", "answer": f"\\frac{{{n}}}{{2}}", "level": 1} for n in numbers]
    choices = [
        {"question": f"Which number is {n}?", "options": [f"{n + k}" for k in (1, 0, 2)], "answer": "B"}
        for n in numbers
    ]
    return [
        "heldout",
        {"name": "gsm8k", "data": jsonl(folder / "gsm8k.jsonl", sums), "samples": 2, "temperature": 0.7},
        {"name": "math-500", "data": jsonl(folder / "math-500.jsonl", formulas)},
        {"name": "mmlu-pro", "data": jsonl(folder / "mmlu-pro.jsonl", choices), "limit": 4, "role": "dev"},
    ]


def test_every_set_is_answered_by_both_students_and_judged_by_its_gate(tmp_path: Path) -> None:
    recipe = yaml.safe_load((REPOSITORY / "jobs/recipes/demo.yaml").read_text())
    recipe["run"]["root"] = str(tmp_path)
    recipe["data"] |= {"holdout": {"count": 4}}
    recipe["curation"] = {"require_correct": False, "require_verdict": False}
    recipe["evaluation"] = {
        "sets": sets(tmp_path),
        "max_tokens": 48,
        "gates": [{"set": "math-500", "min_gain": 1.0}],  # which no student reaches
    }
    recipe["serving"] = {"trial": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = run(tmp_path, "jobs/pipeline.py")
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    found = json.loads((tmp_path / "runs/demo/evaluation.json").read_text())["result"]
    questions = {name: one["trained"]["questions"] for name, one in found["sets"].items()}
    assert questions == {"heldout": 4, "gsm8k": QUESTIONS, "math-500": QUESTIONS, "mmlu-pro": 4}
    assert set(found["sets"]["gsm8k"]["base"]["pass_at"]) == {"2"}
    assert "Evaluation on mmlu-pro (bare prompt, dev)" in done.stdout
    assert "FAILED: gate math-500 against base (min_gain 1)" in done.stdout
    verdicts = pq.read_table(tmp_path / "runs/demo/verdicts.parquet").to_pylist()
    assert len(verdicts) == 2 * (4 + 2 * QUESTIONS + QUESTIONS + 4)
    served = run(tmp_path, "serve")
    assert served.returncode == 2
    assert "its student failed gate math-500" in served.stderr
    assert engines_left() == []


def run(root: Path, entry: str) -> subprocess.CompletedProcess[str]:
    recipe = str(root / "recipe.yaml")
    cgd = str(Path(sys.executable).with_name("cgd"))
    command = [cgd, entry, recipe] if entry == "serve" else [sys.executable, entry, recipe]
    with tempfile.TemporaryDirectory(prefix="cgd-") as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder}
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
