"""Check that requested resources fit on the Ray cluster, and that they are released."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import ray.exceptions
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.runtime import processes
from cgd_ray.runtime.cluster import Cluster, could_launch, read_cluster
from cgd_ray.runtime.demand import Demand
from cgd_ray.runtime.device import asks_for_gpus
from cgd_ray.runtime.packing import holds, pack
from cgd_ray.runtime.session import joins_cluster

log = structlog.get_logger(__name__)
_RELEASE_TIMEOUT_S = 60.0
_POLL_INTERVAL_S = 0.2
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Wanted:
    """Engines or workers of one kind that run at once."""

    key: str
    """Section of the recipe that requests them."""
    demand: Demand
    count: int
    fewest: int
    """How many of them must fit on a cluster that this command did not start."""


def require_same_packages(key: str, gpus: float) -> None:
    """Refuse to leave a joined cluster's GPUs idle by default; `key` is the section that sets no number.

    Raises:
        ConfigError: the packages here compute on CPU, and the cluster has GPUs.
    """
    if gpus and joins_cluster() and not asks_for_gpus():
        raise ConfigError(
            f"{key}.gpus_per_worker: the cluster has {gpus:g} GPUs, but the packages installed here compute on CPU. "
            "Fix: install cgd-ray[gpu] on every node (`make setup DEVICE=gpu`), or set it to 0 to stay on CPU"
        )


def require_room(wanted: Sequence[Wanted], *, may_start_nodes: bool = True) -> None:
    """Refuse requests that would wait for ever.

    One engine or worker must fit on a running node or on one that an autoscaler may add. On a cluster that this command
    started, all of them must fit at once; on a joined one, the fewest of each kind that can work without the others.

    Args:
        wanted: engines and workers that run at once.
        may_start_nodes: request all of it from an autoscaler that does not list its shapes of nodes, which may then
            start nodes; if false, request one of each kind.

    Raises:
        ConfigError: a request exceeds the cluster; the text names its section and the largest node.
    """
    cluster = read_cluster()
    for one in wanted:
        if not _has_place(one.demand, cluster):
            raise ConfigError(
                f"{_asks(one)} {_each(one)}on one node; {_largest(one.demand, cluster)}. Fix: lower "
                "tensor_parallel_size, GPUs or CPUs there, correct accelerator_type, or add such a node"
            )
    if pack([one.demand for one in wanted for _ in range(one.count)], cluster) is not None:
        return
    if not joins_cluster():
        raise ConfigError(
            f"{' and '.join(_asks(one) for one in wanted)} at once, and this machine has {cluster.cpus:g} CPUs and "
            f"{cluster.gpus:g} GPUs. Fix: ask for less, or join a cluster (RAY_ADDRESS, or a submitted job)"
        )
    if may_start_nodes or not cluster.grows:
        _require_fewest(wanted, cluster)


def _require_fewest(wanted: Sequence[Wanted], cluster: Cluster) -> None:
    fewest = [one.demand for one in wanted for _ in range(one.fewest)]
    if len(fewest) == 1:  # one fits
        return
    held = resources_in_use()  # before the request to the autoscaler, which may add nodes
    if pack(fewest, cluster) is not None or (cluster.grows and could_launch(fewest)):
        if not cluster.grows:
            log.warning("the cluster does not hold all engines at once; going on with those that have room")
        return
    least = " and ".join(f"{one.key}: {one.fewest} with {one.demand}" for one in wanted)
    is_in_use = held.cpus > _ROUNDING or held.gpus > _ROUNDING
    if cluster.grows and is_in_use:  # an autoscaler at its limit reports the same for resources in use
        log.warning(f"the cluster has no room now for {least}; waiting")
        return
    raise ConfigError(
        f"the cluster's nodes never hold at once {least}; they have {cluster.cpus:g} CPUs and {cluster.gpus:g} "
        "GPUs. Fix: ask for less there, take generation.execution: staged, or add nodes"
    )


def _has_place(demand: Demand, cluster: Cluster) -> bool:
    return any(holds(shape, demand) for shape in cluster.shapes) or (cluster.grows and could_launch([demand]))


def _asks(wanted: Wanted) -> str:
    return f"{wanted.key} asks for {wanted.demand.times(wanted.count)}"


def _each(wanted: Wanted) -> str:
    return f"in {wanted.count} parts, each of {wanted.demand} " if wanted.count > 1 else ""


def _largest(demand: Demand, cluster: Cluster) -> str:
    kind = demand.accelerator_type
    shapes = [shape for shape in cluster.shapes if kind is None or kind in shape.accelerator_types]
    if not shapes:
        kinds = sorted({one for shape in cluster.shapes for one in shape.accelerator_types})
        return f"no node has accelerator type {kind} (there are: {', '.join(kinds) or 'none'})"
    largest = max(shapes, key=lambda shape: (shape.gpus, shape.cpus) if demand.gpus else (shape.cpus, shape.gpus))
    return f"the largest node has {largest.cpus:g} CPUs and {largest.gpus:g} GPUs"


def resources_in_use() -> Demand:
    """CPUs and GPUs in use now, by any command."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return Demand(*(total.get(kind, 0.0) - free.get(kind, 0.0) for kind in ("CPU", "GPU")))


def wait_for_release(before: Demand) -> None:
    """Wait until ended engines or workers have released their resources: others could wait for these for ever.

    Actors and placement groups hold CPUs or GPUs, so these numbers cover both.

    Raises:
        CgdError: more is in use than before, on a cluster that this command started. On a joined cluster another
            command may use it, so only a warning is logged.
    """
    deadline = time.monotonic() + _RELEASE_TIMEOUT_S
    while (now := resources_in_use()).cpus > before.cpus + _ROUNDING or now.gpus > before.gpus + _ROUNDING:
        if time.monotonic() > deadline:
            text = (
                f"engines or workers have ended, but {now.cpus:g} CPUs and {now.gpus:g} GPUs are held where "
                f"{before.cpus:g} and {before.gpus:g} were before: see `ray status` for who holds them"
            )
            if joins_cluster():
                log.warning(text)
                break
            raise CgdError(text)
        time.sleep(_POLL_INTERVAL_S)
    _end_orphans()


def _end_orphans() -> None:
    """End processes that outlived their owner, on every node: Ray does not track them and reassigns their GPUs.

    The core process of a vLLM engine checks for its parent only if it has several workers.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    _say_ended(processes.end_orphans())
    if not nodes:
        return
    look = ray.remote(num_cpus=0, max_retries=0)(processes.end_orphans)
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    looks = [look.options(scheduling_strategy=place).remote() for place in places]
    ready, _ = ray.wait(looks, num_returns=len(looks), timeout=_RELEASE_TIMEOUT_S)
    seen = 0
    for one in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            _say_ended(ray.get(one))
            seen += 1
    if seen < len(nodes):
        log.warning("nodes that were not searched for leftover engine processes", nodes=len(nodes) - seen)


def _say_ended(count: int) -> None:
    if count:
        log.info("ended processes of engines that are gone", count=count)
