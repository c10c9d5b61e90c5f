"""Methods side by side, on real models: generation once, one student per method."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cgd_ray.cli import app
from tests.servers import REPOSITORY

SMALL = [
    "data.limit=8",
    "data.holdout.count=4",
    "curation.require_correct=false",
    "training.epochs=1",
    "training.batch_size=4",
    "evaluation.max_tokens=48",
]


@pytest.mark.timeout(3600)
def test_methods_share_their_rows_and_are_shown_side_by_side(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "jobs/recipes/demo-methods.yaml", *SMALL, f"run.root={tmp_path}"]
    result = CliRunner().invoke(app, [*command, "--method", "refsft", "--method", "distill"])
    output = capfd.readouterr()
    assert result.exit_code == 0, output.err[-3000:]
    outcomes = json.loads((tmp_path / "runs/demo-methods/comparison.json").read_text())["students"]
    assert not outcomes["refsft"]["generation"]["cost"]["reused"]
    assert outcomes["distill"]["generation"]["cost"]["reused"]
    assert "base" not in outcomes["distill"]["evaluation"]["cost"]["spent"]
    students = [(tmp_path / f"runs/demo-methods-{name}/student/model.safetensors").read_bytes() for name in outcomes]
    assert students[0] != students[1]
    table = (tmp_path / "runs/demo-methods/comparison.md").read_text()
    assert "| base |" in table
    assert "| refsft |" in table
    assert "| distill |" in table
    assert "copied word for word: critique to refinement" in table


@pytest.mark.timeout(3600)
def test_all_nine_methods_go_on_after_a_kill(tmp_path: Path) -> None:
    """The recipe of all methods, smaller; killed when the third has its student, while the fourth is under way."""
    runs = tmp_path / "runs"
    command = [str(Path(sys.executable).with_name("cgd")), "compare", "jobs/recipes/compare-arms.yaml"]
    command += [*SMALL, "data.limit=12", f"run.root={tmp_path}"]
    with (tmp_path / "log").open("w") as log:
        killed = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        while len(whole_students(runs)) < 3 and killed.poll() is None:
            time.sleep(1)
        time.sleep(15)
        killed.kill()
        assert killed.wait(60) == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
        before = students(runs)
        assert subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=log, check=False).returncode == 0
    outcomes = json.loads((runs / "compare-arms/comparison.json").read_text())["students"]
    assert len(outcomes) == 9
    assert all(outcome["generation"]["cost"]["reused"] for outcome in outcomes.values())
    reused = [name for name, outcome in outcomes.items() if outcome["training"]["cost"]["reused"]]
    assert reused == list(outcomes)[: len(before)]
    assert len({outcome["training"]["result"]["student"]["rows"] for outcome in outcomes.values()}) == 1
    assert len({outcome["training"]["result"]["student"]["steps"] for outcome in outcomes.values()}) == 1
    after = students(runs)
    assert len(after) == 9
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 9


def whole_students(runs: Path) -> list[Path]:
    return [file.parent for file in runs.glob("*/student/manifest.json")]


def students(runs: Path) -> dict[str, str]:
    """Digests of the weights, by run, of the students that are whole."""
    weights = {folder.parent.name: folder / "model.safetensors" for folder in whole_students(runs)}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in weights.items()}
