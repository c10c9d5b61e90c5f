"""The nodes of the connected Ray cluster: running ones, and those that an autoscaler may add."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cgd_ray.compat.ray_core import active_nodes, cluster_status, node_groups
from cgd_ray.runtime.demand import ACCELERATOR, Demand
from cgd_ray.runtime.interrupts import interruptibly
from cgd_ray.runtime.session import joins_cluster

_ANSWER_TIMEOUT_S = 30.0  # an autoscaler checks demands every 5 s
_POLL_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Node:
    """One node, or the shape of nodes that an autoscaler may add."""

    cpus: float
    gpus: float
    accelerator_types: frozenset[str] = frozenset()
    name: str | None = None
    """Ray's id of a running node; null for a shape."""


@dataclass(frozen=True)
class Cluster:
    """The data about a Ray cluster that placement needs."""

    nodes: tuple[Node, ...]
    declared: tuple[tuple[Node, float], ...] = ()
    """Shapes of nodes, and the most of each at once, running ones included."""
    grows: bool = False
    """Whether an autoscaler may add nodes of shapes that it does not list."""

    @property
    def cpus(self) -> float:
        """CPUs of all running nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all running nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def shapes(self) -> list[Node]:
        """Running nodes and shapes that may be added."""
        return [*self.nodes, *(shape for shape, most in self.declared if most)]

    @property
    def largest_node_cpus(self) -> float:
        """CPUs of the largest node that runs or may be added."""
        return max((node.cpus for node in self.shapes), default=0.0)


def read_cluster() -> Cluster:
    """Read the connected cluster. One that this command started does not grow."""
    nodes = tuple(_node(node["Resources"], node.get("NodeID")) for node in ray.nodes() if node["Alive"])
    if not joins_cluster():
        return Cluster(nodes)
    declared = tuple((_node(resources), _most(count)) for resources, count in node_groups())
    return Cluster(nodes, declared, grows=not declared and _has_autoscaler())


def could_launch(demands: Sequence[Demand]) -> bool:
    """Whether an autoscaler that does not list its shapes of nodes can launch nodes for all the demands at once.

    The demands are submitted during the check, and the autoscaler may start nodes for them. Version 2 of Ray's
    autoscaler reports infeasible demands; version 1 reports none, which counts as yes.
    """
    return interruptibly(partial(_could_launch, [demand.bundle() for demand in demands if not demand.is_nothing]))


def _could_launch(bundles: list[dict[str, float]]) -> bool:
    groups: list[PlacementGroup] = []
    try:
        groups.extend(placement_group([bundle], "STRICT_PACK") for bundle in bundles)
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        asked: int | None = None
        while time.monotonic() < deadline and not all(group.wait(_POLL_INTERVAL_S) for group in groups):
            status = cluster_status()
            said = status.autoscaling_state
            infeasible = [
                dict(one.resources_bundle) for gang in said.infeasible_gang_resource_requests for one in gang.requests
            ]
            if any(bundle in infeasible for bundle in bundles):
                return False
            asked = asked or status.cluster_resource_state.cluster_resource_state_version
            if said.last_seen_cluster_resource_state_version > asked:
                break
        return True
    finally:
        for group in groups:
            remove_placement_group(group)


def _node(resources: dict[str, float], name: str | None = None) -> Node:
    kinds = frozenset(kind.removeprefix(ACCELERATOR) for kind in resources if kind.startswith(ACCELERATOR))
    return Node(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)), kinds, name)


def _most(count: int) -> float:
    return math.inf if count < 0 else count


def _has_autoscaler() -> bool:
    """Whether an autoscaler may launch nodes.

    A head always runs a monitor: version 1 names a node that it did not launch `node_ID`, and version 2 reports
    infeasible demands.
    """
    if cluster_status().autoscaling_state.autoscaler_state_version:
        return True
    return any(not name.startswith("node_") for name in active_nodes())
