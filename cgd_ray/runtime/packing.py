"""Assign engines to nodes: large ones first, each on one node."""

from collections.abc import Sequence

from cgd_ray.runtime.cluster import Cluster, Node
from cgd_ray.runtime.demand import Demand

_ROUNDING = 1e-6


def holds(node: Node, demand: Demand) -> bool:
    """Whether the demand fits on the node while the node is empty."""
    return _Room(node).holds(demand)


def largest_first(demands: Sequence[Demand]) -> list[int]:
    """Indices of the demands in the order in which they are placed; of equal ones, those for one kind of GPU first."""

    def size(index: int) -> tuple[float, bool, float]:
        demand = demands[index]
        return demand.gpus, demand.accelerator_type is not None, demand.cpus

    return sorted(range(len(demands)), key=size, reverse=True)


def pack(demands: Sequence[Demand], cluster: Cluster) -> list[Node] | None:
    """A node for each of the demands, all at once; None where they do not fit together.

    First-fit decreasing, into the fullest node that has room. A packing that it finds is valid. It misses none if the
    sizes divide each other, as tensor parallel sizes do. Running nodes are filled before those that may be added.
    """
    rooms = [_Room(node) for node in cluster.nodes] + [_Room(node) for node in _to_come(cluster, len(demands))]
    wanted = frozenset(demand.accelerator_type for demand in demands if demand.accelerator_type)
    places: dict[int, Node] = {}
    for index in largest_first(demands):
        demand = demands[index]
        others = wanted - {demand.accelerator_type}
        fitting = [room for room in rooms if room.holds(demand)]
        if not fitting:
            return None
        best = min(fitting, key=lambda room: room.badness(demand, others))
        best.take(demand)
        places[index] = best.node
    return [places[index] for index in range(len(demands))]


def _to_come(cluster: Cluster, most: int) -> list[Node]:
    living = [(node.cpus, node.gpus, node.accelerator_types) for node in cluster.nodes]
    coming = []
    for shape, count in cluster.declared:
        there = living.count((shape.cpus, shape.gpus, shape.accelerator_types))
        coming += [shape] * int(min(max(0, count - there), most))
    return coming


class _Room:
    """Free resources of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._cpus = node.cpus
        self._gpus = [1.0] * int(node.gpus)  # Ray assigns whole GPUs, or a part of one

    def holds(self, demand: Demand) -> bool:
        kind = demand.accelerator_type
        if demand.cpus > self._cpus + _ROUNDING or (kind and kind not in self.node.accelerator_types):
            return False
        if demand.gpus < 1:
            return not demand.gpus or any(demand.gpus <= free + _ROUNDING for free in self._gpus)
        return demand.gpus <= self._gpus.count(1.0)

    def take(self, demand: Demand) -> None:
        self._cpus -= demand.cpus
        for _ in range(int(demand.gpus)):
            self._gpus.remove(1.0)
        if part := demand.gpus % 1:
            fullest = min(free for free in self._gpus if part <= free + _ROUNDING)
            self._gpus[self._gpus.index(fullest)] -= part

    def badness(self, demand: Demand, others: frozenset[str]) -> tuple[float, ...]:
        """Smallest for the node that other demands need least: GPUs are packed, engines on CPU are spread evenly."""
        if demand.gpus:
            # Whether other demands need this kind, and how much would stay free.
            return self.node.name is None, bool(self.node.accelerator_types & others), sum(self._gpus), self._cpus
        return self.node.name is None, self.node.gpus > 0, -self._cpus
