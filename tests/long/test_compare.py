"""Methods side by side, on real models: generation once, one student per method."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cgd_ray.cli import app

SMALL = [
    "data.limit=8",
    "data.holdout.count=4",
    "curation.require_correct=false",
    "training.epochs=1",
    "training.batch_size=4",
    "evaluation.max_tokens=48",
]


def test_methods_share_their_rows_and_are_shown_side_by_side(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "jobs/recipes/demo-methods.yaml", *SMALL, f"run.root={tmp_path}"]
    result = CliRunner().invoke(app, [*command, "--method", "refsft", "--method", "distill"])
    output = capfd.readouterr()
    assert result.exit_code == 0, output.err[-3000:]
    outcomes = json.loads((tmp_path / "runs/demo-methods/comparison.json").read_text())
    assert not outcomes["refsft"]["generation"]["reused"]
    assert outcomes["distill"]["generation"]["reused"]
    assert outcomes["distill"]["evaluation"]["base"]["spent"] == {}
    students = [(tmp_path / f"runs/demo-methods-{name}/student/model.safetensors").read_bytes() for name in outcomes]
    assert students[0] != students[1]
    table = (tmp_path / "runs/demo-methods/comparison.md").read_text()
    assert "| base |" in table
    assert "| refsft |" in table
    assert "| distill |" in table
    assert "copied word for word: critique to refinement" in table
