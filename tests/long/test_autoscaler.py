"""A live autoscaler (Ray's v2, its nodes are processes here) that tells no shapes of nodes, as KubeRay's does not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.state import state
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from cgd_ray.errors import ConfigError
from cgd_ray.runtime.capacity import Wanted, require_room, resources_in_use
from cgd_ray.runtime.cluster import could_launch, read_cluster
from cgd_ray.runtime.demand import Demand
from tests.conftest import end_processes
from tests.scripted import generate, scripted_recipe
from tests.servers import free_port, wait_for_port

ROWS = 20
EMPTY = ("auth", "docker", "file_mounts")
NONE = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
)  # fmt: skip


def config(port: int) -> dict[str, object]:
    """At most two nodes of 4 GPUs."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    gpus = {"resources": {"CPU": 4, "GPU": 4}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    # By its class: Ray's wheel lacks a file that the provider's own name needs.
    provider = {"type": "external", "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"}
    provider |= {"gcs_address": f"127.0.0.1:{port}", "head_node_id": FAKE_HEAD_NODE_ID}
    return {
        "cluster_name": "test",
        "max_workers": 2,
        "provider": {**provider, "launch_multiple": True},
        "available_node_types": {"ray.head.default": head, "gpus": gpus},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 1,
        "file_mounts_sync_continuously": False,
        **{name: {} for name in EMPTY},
        **{name: [] for name in NONE},
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A head alone, joined as a submitted job does."""
    port, file = free_port(), tmp_path_factory.mktemp("autoscaler") / "config.json"
    file.write_text(json.dumps(config(port)))
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=0",
        "--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--autoscaling-config={file}",
    ]  # fmt: skip
    environment = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",  # `ray start` would make a token that this process has not
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with subprocess.Popen(command, env=os.environ | environment) as head, pytest.MonkeyPatch.context() as patch:
        try:
            wait_for_port(port, 60)
            patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            ray.init(address=f"127.0.0.1:{port}", log_to_driver=False)
            patch.setattr(state, "get_cluster_config", lambda: None)
            yield
        finally:
            ray.shutdown()
            end_processes({*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)})


@pytest.mark.usefixtures("cluster")
def test_what_all_nodes_together_never_hold_is_refused() -> None:
    assert read_cluster().grows
    for demand, count in ((Demand(1, 5), 1), (Demand(1, 4), 3), (Demand(1, 1), 9)):
        assert not could_launch([demand] * count)
        wait_until_idle()
        with pytest.raises(ConfigError, match="engine"):
            require_room([Wanted("engine", demand, count, count)])
    require_room([Wanted("training", Demand(1, 1), 9, 9)], may_start_nodes=False)  # one of them has room
    require_room([Wanted("engine", Demand(1, 4), 3, 2)])


def wait_until_idle() -> None:
    while resources_in_use() != Demand(0, 0):
        time.sleep(0.2)


@pytest.mark.usefixtures("cluster")
def test_engines_bring_their_nodes(tmp_path: Path) -> None:
    result = generate(scripted_recipe(tmp_path, ROWS, {"gpus": 1, "replicas": 2}, {"gpus": 4, "replicas": 2}))
    assert result.counts["refine"]["ok"] == ROWS - 1
    assert 1 <= sum(node.gpus == 4 for node in read_cluster().nodes) <= 2
