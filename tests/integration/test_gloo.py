"""Where gloo listens on machines whose own name leads to loopback, as Debian's installer writes it into /etc/hosts."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import ray.util
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from cgd_ray.training.launch.ray_group import NodeTorchConfig
from tests.servers import REPOSITORY

MACHINE = """
    hostname debian && mount --bind {hosts} /etc/hosts && ip link set lo up
    until ip addr add 10.9.0.{number}/24 dev cgd0 2>/dev/null; do sleep 0.1; done
    ip link set cgd0 up
    exec {python} -c '
    import datetime, os, torch, torch.distributed as dist
    from cgd_ray.training import distributed
    distributed.bind_gloo(distributed._own_address(os.environ["MASTER_ADDR"]))
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=90))
    total = torch.ones(1)
    dist.all_reduce(total)
    print(total.item())
    '
"""
NAMESPACES = ["unshare", "--net", "--uts", "--mount"]


def in_own_namespaces(process: subprocess.Popen[str]) -> bool:
    return Path(f"/proc/{process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    if not shutil.which("ip") or subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True).returncode:
        pytest.skip("two machines are pretended with iproute2 and namespaces, which root may make")
    file = tmp_path / "hosts"
    file.write_text("127.0.0.1 localhost\n127.0.1.1 debian\n")
    return file


def test_two_machines_named_by_loopback_find_each_other(hosts: Path) -> None:
    """Without `bind_gloo` each listens at 127.0.1.1, and the other one is refused."""
    processes = []
    for rank in range(2):
        script = textwrap.dedent(MACHINE).format(hosts=hosts, number=rank + 1, python=sys.executable)
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "10.9.0.1", "MASTER_PORT": "29400"}
        variables = os.environ | group | {"PYTHONPATH": str(REPOSITORY)}
        command = [*NAMESPACES, "sh", "-c", script]
        processes.append(
            subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        while not all(map(in_own_namespaces, processes)):
            time.sleep(0.05)
        ends = [["cgd0", "netns", str(process.pid)] for process in processes]
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]], check=True)
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [output for output, _ in said] == ["2.0\n", "2.0\n"], said


@pytest.fixture(scope="module")
def one_node() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("one_node")
def test_ray_trains_workers_listen_on_their_nodes_interface() -> None:
    address = ray.util.get_node_ip_address()
    config = NodeTorchConfig(backend="gloo")
    name = TorchTrainer(interface, torch_config=config, scaling_config=ScalingConfig(num_workers=1)).fit().return_value
    assert address in {each.address for each in psutil.net_if_addrs()[name]}


def interface() -> str:
    return os.environ["GLOO_SOCKET_IFNAME"]
