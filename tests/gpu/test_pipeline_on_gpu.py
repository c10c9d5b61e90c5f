"""Every phase as a user runs it on one GPU: engines after each other, and two at a time on halves of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import REPOSITORY

pytestmark = pytest.mark.gpu
TEACHER = "{type: vllm, model: 'demo:smollm2-135m', max_model_len: 4096, enforce_eager: true, gpus_per_worker: %s}"
SMALL = [
    "data.limit=32",
    "data.holdout.count=8",
    "student.engine.enforce_eager=true",  # compiling each of four engines takes longer than all their work
    "generation.draft.max_tokens=300",
    "curation={require_correct: false, require_verdict: false}",
    "training.workers=1",
    "training.epochs=1",
    "evaluation.max_tokens=64",
]


def run(folder: Path, share: float, *settings: str) -> dict[str, Any]:
    engines = [f"teacher.engine={TEACHER % share}", f"student.engine.gpus_per_worker={share}"]
    command = [sys.executable, "jobs/pipeline.py", "jobs/recipes/demo.yaml", f"run.root={folder}"]
    done = subprocess.run(
        [*command, *SMALL, *engines, *settings],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    manifest: dict[str, Any] = json.loads((folder / "runs/demo/manifest.json").read_text())
    return manifest | {"log": done.stdout + done.stderr}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def require_whole(made: dict[str, Any]) -> None:
    assert made["generation"]["result"]["stages"]["refine"]["ok"] > 0
    assert made["config"]["student"]["engine"]["dtype"] == "bfloat16"
    assert made["config"]["training"]["precision"] == "bf16"
    assert made["training"]["result"]["student"]["steps"] >= 1
    assert made["evaluation"]["result"]["sets"]["heldout"]["trained"]["questions"] == 8


def test_engines_take_turns_on_the_gpu(root: Path) -> None:
    require_whole(run(root, 1, "generation.execution=staged", "serving.trial=false"))


def test_two_engines_share_the_gpu(tmp_path: Path) -> None:
    require_whole(run(tmp_path, 0.4, "generation.execution=streaming", "serving.trial=false"))


def test_the_student_is_served_on_the_gpu(root: Path) -> None:
    made = run(root, 1, "generation.execution=staged", "serving.trial=true")
    assert made["generation"]["cost"]["reused"]
    assert "trained student (served)" in made["log"]
