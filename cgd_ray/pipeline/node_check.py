"""Check before anything is paid for that all nodes share the root and have the same device."""

import secrets
from dataclasses import dataclass, replace

import ray
import ray.exceptions
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cgd_ray.errors import ConfigError
from cgd_ray.redaction import one_line
from cgd_ray.runtime.device import Device, installed_device, pretends_gpus
from cgd_ray.storage.filesystem import Store, store_errors

log = structlog.get_logger(__name__)
_ANSWER_TIMEOUT_S = 120.0  # the check starts a process on each node


@dataclass(frozen=True)
class _View:
    """Result of the check on one node."""

    trouble: str | None
    """Why the node cannot read the probe; None if it can."""
    is_broken: bool
    """Whether the check itself cannot run on the node."""
    device: Device | None
    """Device of the node's packages; None on a node without a GPU, where it does not matter."""


def check_nodes(store: Store) -> None:
    """Write a file to the root that every running node must read, and compare the devices of nodes with GPUs.

    With a root on local disks, each engine would write its rows to its own node, and training would find none of them.

    Raises:
        ConfigError: a node fails the check; the text names one such node and the fix.
    """
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    name = f".probe-{secrets.token_hex(4)}"
    store.write(name, b"probe")
    try:
        views = _ask(nodes, replace(store, patient=False), name)
    finally:
        store.discard(name)
    names = {key: str(node["NodeManagerHostname"]) for key, node in nodes.items()}
    if broken := {key: view.trouble for key, view in views.items() if view.is_broken}:
        one = next(iter(broken))
        raise ConfigError(
            f"{len(broken)} of {len(nodes)} nodes cannot run cgd-ray, {names[one]} for instance ({broken[one]}). Fix: "
            "install the same packages on every node, or correct the job's runtime environment"
        )
    if blind := {key: view.trouble for key, view in views.items() if view.trouble}:
        one = next(iter(blind))
        raise ConfigError(
            f"run.root {store.root}: {len(blind)} of {len(nodes)} nodes cannot read what was written there, "
            f"{names[one]} for instance ({blind[one]}). Fix: take a directory that all nodes share, or "
            "s3://bucket/prefix with the same keys on every node"
        )
    here = installed_device()
    if other := [names[key] for key, view in views.items() if view.device not in {None, here}]:
        raise ConfigError(
            f"the packages of {other[0]} compute on another device than those of the driver ({here}; {len(other)} "
            "nodes). Fix: install the same packages on every node (`make setup DEVICE=gpu` or cgd-ray[gpu])"
        )
    if silent := len(nodes) - len(views):
        log.warning("nodes that did not answer whether they see the root", nodes=silent, seconds=_ANSWER_TIMEOUT_S)


def _ask(nodes: dict[str, dict[str, dict[str, float]]], store: Store, name: str) -> dict[str, _View]:
    """Return the results of the nodes that answer in time."""
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            store, name, has_gpu=found["Resources"].get("GPU", 0) > 0 and not pretends_gpus()
        ): node
        for node, found in nodes.items()
    }
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_TIMEOUT_S)
    views = {}
    for one in ready:
        try:
            views[asked[one]] = ray.get(one)
        except (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError) as error:
            views[asked[one]] = _View(" ".join(str(error).split())[-300:], is_broken=True, device=None)
        except ray.exceptions.RayError:
            pass  # the node has left; engines on nodes that join later check for themselves
    return views


def _look(store: Store, name: str, *, has_gpu: bool) -> _View:
    errors: tuple[type[Exception], ...] = store_errors()
    trouble = None
    try:
        if store.read(name) != b"probe":
            trouble = "it holds something else"
    except errors as error:
        trouble = f"{type(error).__name__}: {one_line(error, 200)}"
    return _View(trouble, is_broken=False, device=installed_device() if has_gpu else None)
