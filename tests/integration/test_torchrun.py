"""The rank's loop under torchrun, as a scheduler's machine would start it: the command is the one that a run names."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cgd_ray.config.run import StorageSection
from cgd_ray.errors import StoppedError
from cgd_ray.storage.lease import hold_lease
from tests.events import scalars
from tests.place import Place, distance
from tests.servers import REPOSITORY, S3Server
from tests.unit.training.tiny import write_tiny_model


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    model = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_model(model)
    return Place(str(tmp_path_factory.mktemp("root")), model)


def command_of(place: Place, name: str, **training: object) -> list[str]:
    """What the run says that one is to type."""
    with pytest.raises(StoppedError) as stopped:
        place.train(name, launcher="torchrun", **training)
    said = re.search(r"train with: (?:\w+=\S+ )*torchrun (.*); then rerun the same command", str(stopped.value))
    assert said
    return [sys.executable, "-m", "torch.distributed.run", *shlex.split(said[1])]


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-2000:]
    return output


def figures(place: Place, name: str) -> dict[str, dict[int, float]]:
    folder = f"runs/{name}/tensorboard"
    (identity,) = place.store.folders(folder)
    return scalars(Path(place.store.path(f"{folder}/{identity}")))


def test_stopped_and_resumed_under_torchrun_is_what_ray_trains(place: Place) -> None:
    expected = place.train("by-ray")
    command = command_of(place, "by-torchrun", checkpoint_interval=100)
    process = start(command)
    assert process.stdout
    for line in process.stdout:
        if "step=4/12" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=600)
    assert process.returncode != 0
    (step,) = place.checkpoints("by-torchrun")
    assert 4 <= int(step[-2:]) < 12
    with pytest.raises(StoppedError):
        place.train("by-torchrun", launcher="torchrun")
    finish(start(command))
    assert sorted(figures(place, "by-torchrun")["train/loss"]) == list(range(1, 13))
    result = place.train("by-torchrun", launcher="torchrun")
    assert (result.result.steps, result.resumed_from_step) == (12, int(step[-2:]))
    assert distance(place.weights(result), place.weights(expected)) == 0
    assert place.train("by-torchrun", launcher="torchrun").reused


@pytest.mark.long
def test_stopped_under_torchrun_and_resumed_by_ray_is_the_same(place: Place) -> None:
    expected = place.train("by-ray")
    process = start(command_of(place, "by-both", checkpoint_interval=100))
    assert process.stdout
    for line in process.stdout:
        if "step=4/12" in line:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=600)
    result = place.train("by-both", checkpoint_interval=100)
    assert result.resumed_from_step in range(4, 12)
    assert distance(place.weights(result), place.weights(expected)) == 0


def test_on_s3_the_command_knows_where(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    write_tiny_model(tmp_path)
    place = Place(s3.url("torchrun"), tmp_path, StorageSection(endpoint_url=s3.endpoint))
    with pytest.raises(StoppedError, match=f"train with: AWS_ENDPOINT_URL={s3.endpoint} torchrun"):
        place.train("on-s3", launcher="torchrun", epochs=1)
    finish(start(command_of(place, "on-s3", epochs=1), AWS_ENDPOINT_URL=s3.endpoint))
    assert place.train("on-s3", launcher="torchrun", epochs=1).result.steps == 6


def test_a_full_gpu_of_one_rank_ends_all(place: Place, tmp_path: Path) -> None:
    command = command_of(place, "full")
    command[command.index("cgd_ray.training.launch.torchrun")] = "tests.full_gpu"
    process = start(command, STARTS=str(tmp_path / "starts"))
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert output.count("error: a GPU has no room (CUDA out of memory). Fix: lower training.micro_batch_tokens") == 1
    assert sorted((tmp_path / "starts").read_text().split()) == ["0", "1"]


def test_a_run_that_somebody_works_on_is_refused_at_once(place: Place) -> None:
    command = command_of(place, "held", epochs=1)
    with hold_lease(place.store, "runs/held", wait=False):
        process = start(command)
        output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert output.count(f"runs/held: process {os.getpid()} on ") == 1
    assert place.checkpoints("held") == []


def test_a_student_of_other_settings_is_not_taken_for_this_ones(place: Place) -> None:
    finish(start(command_of(place, "other", epochs=1)))
    with pytest.raises(StoppedError):
        place.train("other", launcher="torchrun", epochs=1, learning_rate=1e-3)


def test_what_is_no_job_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    module = ["-m", "torch.distributed.run", "--standalone", "-m", "cgd_ray.training.launch.torchrun"]
    process = start([sys.executable, *module, str(tmp_path / "job.json")])
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "job.json: not a job of this version (" in output


@pytest.mark.long
@pytest.mark.parametrize("side", ["ours", "plain"])
def test_the_benchmark_for_gpus_runs_without_one(tmp_path: Path, side: str) -> None:
    sizes = ["--shape", "tiny", "--steps", "3", "--batch-size", "4", "--side", side, "--folder", str(tmp_path)]
    module = ["--standalone", "--nproc-per-node", "2", "-m", "benchmarks.training.gpu"]
    said = finish(start([sys.executable, "-m", "torch.distributed.run", *module, *sizes]))
    (line,) = [line for line in said.splitlines() if line.startswith("{")]
    figures = json.loads(line)
    assert (figures["ranks"], figures["device"]) == (2, "CPU")
    assert figures["tokens_per_second"] > figures["supervised_tokens_per_second"] > 0


def test_keys_that_are_missing_are_said_in_one_line(s3: S3Server) -> None:
    module = ["--standalone", "--nproc-per-node", "2", "-m", "cgd_ray.training.launch.torchrun"]
    command = [sys.executable, "-m", "torch.distributed.run", *module, "s3://bucket/runs/r/training/t/job.json"]
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    process = start(command, AWS_ENDPOINT_URL=s3.endpoint, AWS_EC2_METADATA_DISABLED="true", **keys)
    said, _ = process.communicate(timeout=600)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.endswith("Fix: check that the storage is there, and its keys")
    assert "botocore/" not in said
