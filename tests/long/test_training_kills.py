"""SIGKILL in training, during a step and during a checkpoint's write: the weights are those of a quiet training."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from tests.place import Place, distance, fp32_weights
from tests.servers import REPOSITORY
from tests.unit.training.tiny import write_tiny_model

WORKER = "ray::RayTrainWorker"
STEPS = 120
DRIVER = """
import sys, ray
from pathlib import Path
from tests.place import Place
ray.init(address=sys.argv[1], log_to_driver=False)
place = Place(sys.argv[2], Path(sys.argv[3]))
elastic = {"workers": 2, "min_workers": 1} if sys.argv[4] != "quiet" else {"workers": 1}
place.train(
    sys.argv[4], checkpoint_interval=1, epochs=20, learning_rate=1e-3, max_failures=3,
    resources={"cpus_per_worker": 2}, **elastic,
)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    model = tmp_path_factory.mktemp("model")
    write_tiny_model(model)
    return Place(str(tmp_path_factory.mktemp("root")), model)


@pytest.fixture(scope="module")
def quiet(cluster: Cluster, place: Place) -> dict[str, torch.Tensor]:
    finish(start(cluster, place, "quiet"))
    return weights(place, "quiet")


@pytest.mark.parametrize("moment", ["step", "write"])
@pytest.mark.parametrize("victim", ["worker", "driver", "node"])
def test_a_kill_costs_steps_and_no_weight(
    cluster: Cluster, place: Place, quiet: dict[str, torch.Tensor], victim: str, moment: str
) -> None:
    node = cluster.add_node(num_cpus=2)
    name = f"{victim}-{moment}"
    driver = start(cluster, place, name)
    wait_for(place, name, moment, driver)
    match victim:
        case "worker":
            workers()[-1].kill()
        case "driver":
            driver.kill()
        case "node":
            cluster.remove_node(node, allow_graceful=False)
    newest = place.checkpoints(name)[-1]
    at = int(newest[-8:])
    assert 0 < at < STEPS
    if victim == "driver":
        driver.wait(30)
        driver = start(cluster, place, name)
    finish(driver)
    assert distance(weights(place, name), quiet) < 1e-4  # a step is 1e-3; one worker adds up otherwise
    if victim != "node":
        cluster.remove_node(node)


def start(cluster: Cluster, place: Place, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, cluster.address, place.root, str(place.model), name]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(driver: subprocess.Popen[str]) -> None:
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output[-3000:]


def workers() -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["name"]) if process.info["name"].startswith(WORKER)]


def wait_for(place: Place, name: str, moment: str, driver: subprocess.Popen[str]) -> None:
    """Until some checkpoints are whole, and for a write until the newest one is not."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert driver.poll() is None, driver.communicate()[0][-3000:]
        found = place.checkpoints(name)
        whole = [place.store.exists(f"{step}/progress.json") for step in found]
        if sum(whole) >= 2 and (moment == "step" or not whole[-1]):
            return
    pytest.fail(f"no {moment} was met in 200 s")


def weights(place: Place, name: str) -> dict[str, torch.Tensor]:
    """Of the last step, in fp32."""
    last = place.checkpoints(name)[-1]
    assert int(last[-8:]) == STEPS
    return fp32_weights(place.store, last)
