"""However a command ends, nothing that it started goes on: real Ray, a real engine, real signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.servers import REPOSITORY, is_engine
from tests.unit.training.tiny import write_tiny_model


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 3)])
def test_an_interrupted_command_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = start(tmp_path)
    below = wait_for_engine(command)
    command.send_signal(number)
    _, errors = command.communicate(timeout=120)
    assert command.returncode == code, errors[-2000:]
    assert "rerun the same command to resume" in errors.splitlines()[-1]
    assert alive(below) == []


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 3)]
)
def test_an_interrupted_training_writes_a_checkpoint_and_ends_with_a_line(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    write_tiny_model(tmp_path / "tiny")
    long = [
        f"student.model={tmp_path / 'tiny'}",
        "training.epochs=100000",
        "training.checkpoint_interval=100000",
        "evaluation.enabled=false",
        "student.engine={type: scripted}",
    ]
    command = start(tmp_path, "jobs/pipeline.py", *long)
    assert command.stderr is not None
    lines = iter(command.stderr.readline, "")
    assert any("[info     ] training" in line and "step=" in line for line in lines)
    below = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(number)
    _, errors = command.communicate(timeout=120)
    assert len(list(tmp_path.glob("root/runs/demo/training/*/step-*/progress.json"))) == 1
    assert command.returncode == code, errors[-2000:]
    assert "rerun the same command to resume" in errors.splitlines()[-1]
    assert alive(below) == []


def test_what_a_kill_left_is_ended_by_the_next_start_which_continues(tmp_path: Path) -> None:
    command = start(tmp_path)
    below = wait_for_engine(command)
    command.kill()
    command.wait(timeout=10)
    again = start(tmp_path)
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors[-2000:]
    assert alive(below) == []
    assert len(list(tmp_path.glob("root/tables/draft/*/*.parquet"))) >= 1


def start(tmp_path: Path, job: str = "jobs/generate.py", *more: str) -> subprocess.Popen[str]:
    small = ["data.limit=4", "data.holdout.count=2", f"run.root={tmp_path / 'root'}", "generation.execution=staged"]
    small += ["generation.draft.max_tokens=128", "curation.require_correct=false"]  # the teacher is always wrong
    # A teacher that costs no time: these tests are about the student's engine.
    teacher = "teacher.engine={type: scripted, model: t}"
    return subprocess.Popen(
        [sys.executable, job, "jobs/recipes/demo.yaml", *small, teacher, *more],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_engine(command: "subprocess.Popen[str]") -> list[psutil.Process]:
    """All processes below the command, as soon as the engine is among them."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert command.poll() is None, command.communicate()[1][-2000:]
        below = psutil.Process(command.pid).children(recursive=True)
        if any(is_engine(process) for process in below):
            return below
        time.sleep(0.2)
    command.kill()
    pytest.fail("no engine was started in 180 s")


def alive(processes: list[psutil.Process]) -> list[str]:
    _, left = psutil.wait_procs(processes, timeout=15)
    return [title(process) for process in left]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.NoSuchProcess:
        return ""
