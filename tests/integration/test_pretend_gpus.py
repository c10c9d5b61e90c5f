"""Where Ray counts GPUs: what asks for them is placed on them, and CPU packages ask for none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cgd_ray.runtime.device import PRETEND_GPUS
from tests.servers import REPOSITORY
from tests.unit.training.tiny import write_tiny_model

RESOURCES = {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 4, "GPU": 2})}
SMALL = [
    "data.limit=8",
    "data.holdout.count=4",
    "curation.require_correct=false",  # the scripted teacher is always wrong
    "training.epochs=1",
    "training.batch_size=4",
    "serving.trial=false",
]
SCRIPTED = ["student.engine={type: scripted, gpus: 1}", "teacher.engine={type: scripted, model: t, gpus: 1}"]


def run(folder: Path, job: str, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"jobs/{job}.py", "jobs/recipes/demo.yaml", f"run.root={folder}", *SMALL, *settings]
    variables = os.environ | RESOURCES | environment
    return subprocess.run(
        command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=600, check=False
    )


def test_every_phase_runs_while_it_holds_gpus(tmp_path: Path) -> None:
    """Two engines of one GPU side by side, then two training workers of one, then evaluation."""
    write_tiny_model(tmp_path / "tiny")
    done = run(tmp_path, "pipeline", f"student.model={tmp_path / 'tiny'}", *SCRIPTED, **{PRETEND_GPUS: "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    manifest: dict[str, Any] = json.loads((tmp_path / "runs/demo/manifest.json").read_text())
    assert manifest["generation"]["cost"]["execution"] == "streaming"
    assert manifest["generation"]["result"]["stages"]["refine"]["ok"] == 8
    assert manifest["training"]["result"]["student"]["steps"] == 2
    assert manifest["evaluation"]["result"]["sets"]["heldout"]["trained"]["questions"] == 4


def test_cpu_packages_take_none_of_the_gpus_that_ray_counts(tmp_path: Path) -> None:
    """A workstation with a card: Ray finds it, and what is installed computes on CPU."""
    done = run(tmp_path, "train", *SCRIPTED[1:], "student.engine={type: scripted}", "teacher.engine.gpus=0")
    assert "run jobs/generate.py first" in done.stderr  # and nothing about GPUs: no phase asked for one
    refused = run(tmp_path, "generate", "teacher.engine={type: scripted}", "student.engine.gpus_per_worker=1")
    assert refused.returncode == 2
    asked = "student.engine.gpus_per_worker: asks for 1 GPUs, but the installed packages compute on CPU"
    assert asked in refused.stderr.splitlines()[-1]
