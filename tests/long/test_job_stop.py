"""`ray job stop` on a head that gives a stopped job time: training writes a checkpoint, and the same job goes on."""

import json
import subprocess
import time
from pathlib import Path

from tests.servers import BIN, REPOSITORY, RayHead, ray_head

EPOCHS = 20
SETTINGS = [
    "data.limit=4", "data.holdout.count=2", "generation.execution=staged", "curation.require_correct=false",
    "curation.require_verdict=false", "student.engine={type: scripted}", "teacher.engine={type: scripted, model: t}",
    f"training.epochs={EPOCHS}", "training.checkpoint_interval=1000", "evaluation.enabled=false",
]  # fmt: skip


def test_a_stopped_job_writes_a_checkpoint_and_goes_on_from_it(tmp_path: Path) -> None:
    root, home = tmp_path / "root", tmp_path / "home"
    home.mkdir()
    job = ["python", "jobs/pipeline.py", "jobs/recipes/demo.yaml", f"run.root={root}", *SETTINGS]
    with ray_head(home, {"RAY_JOB_STOP_WAIT_TIME_S": "60"}) as head:
        submit = ["submit", "--no-wait", "--submission-id", "first", "--working-dir", str(REPOSITORY), "--", *job]
        wait_for_head(head)
        ask(head, *submit)
        wait_for_step(head, "first")
        ask(head, "stop", "first")
        assert "was stopped" in ask(head, "status", "first")
        assert not (root / "runs/demo/student/manifest.json").exists()
        assert "waiting for a checkpoint" in ask(head, "logs", "first")
        (checkpoint,) = root.glob("runs/demo/training/*/step-*/progress.json")
        step = json.loads(checkpoint.read_text())["progress"]["step"]
        assert 0 < step < EPOCHS
        done = head.submit(*job)
        assert done.returncode == 0, done.stdout[-3000:]
    result = json.loads((root / "runs/demo/student/manifest.json").read_text())["result"]
    assert (result["resumed_from_step"], result["steps"]) == (step, EPOCHS)


def ask(head: RayHead, verb: str, *arguments: str) -> str:
    """`ray job VERB`, with its output."""
    command = [str(BIN / "ray"), "job", verb, "--address", head.address, *arguments]
    done = subprocess.run(command, env=head.environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def wait_for_head(head: RayHead) -> None:
    assert head.submit("true").returncode == 0


def wait_for_step(head: RayHead, job: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        said = ask(head, "logs", job)
        assert "failed" not in ask(head, "status", job), said[-3000:]
        if f"/{EPOCHS}" in said and "step=" in said:
            return
        time.sleep(1)
    raise TimeoutError(f"no step in 300 s: {said[-3000:]}")
