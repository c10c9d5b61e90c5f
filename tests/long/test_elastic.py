"""Training that loses a node goes on with the workers that are left, from the last checkpoint."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.integration.test_training import WORKER
from tests.place import Place, distance, fp32_weights
from tests.unit.training.tiny import write_tiny_model


def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that starts before Ray has counted a new node, or its loss, learns of it in seconds."""
    monkeypatch.setattr("cgd_ray.training.launch.resources._RESIZE_SECONDS", 5.0)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")


def names() -> list[str]:
    """Of the workers' processes."""
    found = (process.info["name"] for process in psutil.process_iter(["name"]))
    return [name for name in found if name.startswith(WORKER)]


def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(monkeypatch)
    model = tmp_path / "model"
    write_tiny_model(model)
    place = Place(str(tmp_path / "root"), model)
    settings = {
        "checkpoint_interval": 1,
        "epochs": 40,
        "resources": {"cpus_per_worker": 2},
        "max_failures": 3,
        "learning_rate": 1e-3,
    }
    node = cluster.add_node(num_cpus=2)  # early: Ray takes its time to count it
    place.train("whole", workers=1, **settings)
    struck: list[str] = []
    workers: list[str] = []

    def strike() -> None:
        """Once both workers train, and have written a checkpoint together."""
        while len(names()) < 2:
            time.sleep(0.05)
        workers.extend(names())
        before = complete(place, "elastic")
        while complete(place, "elastic")[-1:] == before[-1:]:
            time.sleep(0.05)
        struck.extend(complete(place, "elastic"))
        cluster.remove_node(node, allow_graceful=False)

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    result = place.train("elastic", workers=2, min_workers=1, **settings)
    striker.join(1)
    assert len(workers) == 2
    assert 0 < int(struck[-1][-8:]) < result.result.steps == 240
    assert result.resumed_from_step is not None
    whole, elastic = (fp32_weights(place.store, place.checkpoints(name)[-1]) for name in ("whole", "elastic"))
    assert distance(whole, elastic) < 1e-4  # a step is 1e-3


def test_a_node_that_will_be_taken_away_is_a_reason_for_a_checkpoint(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a spot machine's notice reaches Ray: the node is drained, and gone some time later."""
    patience(monkeypatch)
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    write_tiny_model(tmp_path / "model")
    place = Place(str(tmp_path / "root"), tmp_path / "model")
    node = cluster.add_node(num_cpus=2)
    written: list[str] = []

    def strike() -> None:
        while len(names()) < 2:
            time.sleep(0.05)
        time.sleep(3)  # past the first steps
        drain = ["drain-node", "--address", cluster.address, "--node-id", node.node_id, "--reason-message", "spot"]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "60"]
        subprocess.run([Path(sys.executable).with_name("ray"), *drain, *reason], check=True, capture_output=True)
        while not written:
            time.sleep(0.1)
            written.extend(complete(place, "warned"))
        cluster.remove_node(node, allow_graceful=False)

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    result = place.train(
        "warned", workers=2, min_workers=1, checkpoint_interval=10_000, epochs=100, resources={"cpus_per_worker": 2},
        max_failures=3, learning_rate=1e-4,
    )  # fmt: skip
    striker.join(1)
    assert not striker.is_alive()
    assert result.resumed_from_step == int(written[0][-8:]) > 0


def complete(place: Place, name: str) -> list[str]:
    """The checkpoints that a resumed training can start from: their folder comes first, what says so last."""
    return [step for step in place.checkpoints(name) if place.store.exists(f"{step}/progress.json")]
