"""Every node must see the root: a real second node whose disk is its own, in a mount namespace."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.pipeline import node_check
from cgd_ray.pipeline.node_check import check_nodes
from cgd_ray.storage.filesystem import Store
from tests.scripted import generate, scripted_recipe
from tests.servers import REPOSITORY


@pytest.fixture(scope="module")
def other_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def _second_node(cluster: Cluster, other_disk: Path) -> Iterator[None]:
    """A node that finds an empty disk where the driver's root is."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a disk of its own is pretended with a mount namespace, which root may make")
    join = [f"{Path(sys.executable).with_name('ray')} start --address={cluster.address}", "--num-gpus=1 --block"]
    command = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {other_disk} && exec {' '.join(join)}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    node = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while sum(found["Alive"] for found in ray.nodes()) < 2:
            assert node.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield
    finally:
        node.terminate()
        node.wait(timeout=60)


@pytest.mark.usefixtures("_second_node")
def test_a_root_on_a_nodes_own_disk_is_refused(other_disk: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.root .*: 1 of 2 nodes cannot read .*No such file.* Fix: take a dir"):
        check_nodes(Store(str(other_disk)))
    assert list(other_disk.iterdir()) == []


@pytest.mark.usefixtures("_second_node")
def test_a_root_that_all_nodes_see_is_taken(tmp_path: Path) -> None:
    check_nodes(Store(str(tmp_path)))


@pytest.mark.usefixtures("_second_node")
def test_packages_for_another_device_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node with a GPU computes on CPU; the driver is made to believe that it does not."""
    monkeypatch.setattr(node_check, "installed_device", lambda: "cuda")
    with pytest.raises(ConfigError, match=r"the packages of .* compute on another device than those of the driver"):
        check_nodes(Store(str(tmp_path)))


@pytest.mark.usefixtures("_second_node")
def test_a_node_that_came_too_late_to_be_asked_does_not_begin(other_disk: Path) -> None:
    """The engine there and a reader of rows both look; either may be first."""
    made = scripted_recipe(other_disk, 8, {}, {"gpus": 1})
    engine = rf"run\.root {other_disk} on .* is not the driver's. Fix: take a directory that all"
    reader = rf"{other_disk}/.*: not there on .*Fix: let every node see the same run\.root"
    with pytest.raises(CgdError, match=f"{engine}|{reader}"):
        generate(made)
