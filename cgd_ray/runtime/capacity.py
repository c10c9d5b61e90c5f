"""Whether what is asked of Ray has room on the cluster, and whether it is given back."""

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
    """What asks for them: a section of the recipe."""
    demand: Demand
    count: int
    fewest: int
    """How many of them must have room, where the cluster is not this command's own."""


def require_same_packages(key: str, gpus: float) -> None:
    """Refuse to leave a joined cluster's GPUs idle unasked; `key` is what names no number of GPUs.

    Raises:
        ConfigError: the packages here compute on CPU, and the cluster has GPUs.
    """
    if gpus and joins_cluster() and not asks_for_gpus():
        raise ConfigError(
            f"{key}.gpus_per_worker: the cluster has {gpus:g} GPUs, but the packages installed here compute on CPU. "
            "Fix: install cgd-ray[gpu] on every node (`make setup DEVICE=gpu`), or set it to 0 to stay on CPU"
        )


def require_room(wanted: Sequence[Wanted], *, may_start_nodes: bool = True) -> None:
    """Refuse what could only wait for ever.

    One engine or worker must have room on a node that lives or that an autoscaler may add. All of them must have room
    at once on a cluster that this command started, and on a joined one so many as can do without the others.

    Args:
        wanted: what is to run at once.
        may_start_nodes: an autoscaler that does not tell its shapes of nodes is asked for all of it, and may begin to
            start the nodes; else for one of each kind.

    Raises:
        ConfigError: names what asks for more than there is, and the largest node.
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
    if len(fewest) == 1:  # has a place
        return
    held = resources_in_use()  # before the autoscaler is asked: nodes may come of that
    if pack(fewest, cluster) is not None or (cluster.grows and could_launch(fewest)):
        if not cluster.grows:
            log.warning("the cluster does not hold all engines at once; going on with those that have room")
        return
    least = " and ".join(f"{one.key}: {one.fewest} with {one.demand}" for one in wanted)
    is_in_use = held.cpus > _ROUNDING or held.gpus > _ROUNDING
    if cluster.grows and is_in_use:  # an autoscaler that may launch no more says the same of what is taken
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
    """What is held at the moment, by whomever."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return Demand(*(total.get(kind, 0.0) - free.get(kind, 0.0) for kind in ("CPU", "GPU")))


def wait_for_release(before: Demand) -> None:
    """Wait until engines or workers that have ended gave back what they held: others could wait for it for ever.

    Actors and placement groups hold CPUs or GPUs, so that these tell of both.

    Raises:
        CgdError: more is held than before, on a cluster of this command's own. Elsewhere somebody else may have taken
            it: a warning.
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
    """End what outlived its owner, on every node: of it Ray knows nothing, and gives its GPU to somebody else.

    The core of a vLLM engine looks for its parent only where it has several workers.
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
