"""Engines of a run and their places: which start, where a failed one is retried, and when too few are left.

Each engine has a placement group of one bundle. This puts all of its GPUs on one node, and keeps small engines from
taking the room of a large one. If an engine cannot start, it is retried on another node.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from cgd_ray.compat.ray_core import group_near
from cgd_ray.errors import CgdError
from cgd_ray.runtime.cluster import Cluster, Node
from cgd_ray.runtime.demand import Demand
from cgd_ray.runtime.packing import largest_first, pack

_NODE = "ray.io/node-id"  # the label that Ray gives each node
_NOWHERE = {_NODE: "none"}
_SAME_ERROR_WAIT_S = 600.0  # for a new node to join, if no engine runs and all failed with the same error
_PLACEMENT_WAIT_S = 3.0  # until a new group has got the available room
_SAME_NODES, _MOST_NODES = 2, 3  # failed nodes that show that a model never starts: with one error, or with several
_SPARE_TRIES = 3  # beyond one per replica: without a limit, an autoscaler would launch new nodes forever
_VACANT = 1000.0  # available amount of a bundle's own resource in Ray while nothing runs in it


@dataclass(frozen=True)
class Pool:
    """Engines of one role, as requested."""

    role: str
    demand: Demand
    replicas: int
    min_replicas: int = 1
    may_come: bool = False
    """Whether nodes that can hold such an engine may be added to the cluster."""


@dataclass
class _Failure:
    node: str
    error: CgdError
    time: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> str:
        """Error text without numbers and addresses: the same for two nodes with the same fault."""
        return re.sub(r"\b[0-9a-f]{8,}\b|\d+", "#", str(self.error).partition("\n")[0])


@dataclass
class _Place:
    role: str
    group: PlacementGroup
    is_taken: bool = False
    """Whether an engine's process has started there."""


@dataclass
class _Role:
    pool: Pool
    running: set[str] = field(default_factory=set)  # engines that start or are up
    starting: set[str] = field(default_factory=set)
    was_up: bool = False
    left: list[str] = field(default_factory=list)  # places of engines that could not start
    owed: int = 0  # engines that Ray Data starts as replacements of those that could not
    failures: list[_Failure] = field(default_factory=list)
    short_since: float | None = None

    @property
    def tries_left(self) -> bool:
        return len(self.failures) <= self.pool.replicas + _SPARE_TRIES

    def never_starts(self) -> bool:
        """Whether the fault is in the model, or in something else that is the same on all nodes."""
        nodes = {failure.node for failure in self.failures}
        alike = len({failure.kind for failure in self.failures}) == 1
        is_old = alike and time.monotonic() - self.failures[-1].time > _SAME_ERROR_WAIT_S
        return (
            not self.was_up
            and not self.starting
            and (len(nodes) >= (_SAME_NODES if alike else _MOST_NODES) or (is_old and not self.running))
        )


class Replicas:
    """Engines of all pools of a run. Lives in the coordinator, which outlives them."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._roles = {pool.role: _Role(pool) for pool in pools}
        self._places: dict[str, _Place] = {}
        self._free: dict[str, list[str]] = {pool.role: [] for pool in pools}

    def request(self, cluster: Cluster) -> None:
        """Request a place for each engine; earlier requests are placed first.

        First come the engines up to each role's `min_replicas`, since one role could otherwise take all room. Within
        these, and within the rest, large engines come first. Ray would put each on the emptiest node; the node from
        packing is a hint, and another is used if that one has no room.
        """
        numbered = [(role.pool, number) for role in self._roles.values() for number in range(role.pool.replicas)]
        demands = [pool.demand for pool, _ in numbered]
        nodes: Sequence[Node | None] = pack(demands, cluster) or [None] * len(demands)
        order = sorted(largest_first(demands), key=lambda index: numbered[index][1] >= numbered[index][0].min_replicas)
        for index in order:
            pool, node = numbered[index][0], nodes[index]
            if pool.demand.is_nothing:
                continue
            self._free[pool.role].append(self._ask(pool, hint=node.name if node else None))

    def take(self, role: str) -> PlacementGroup:
        """Return a place for an engine that is about to start; a replacement gets a node where no engine failed."""
        if not self._free[role]:
            self._roles[role].owed -= 1
            self._remove(self._roles[role].left)  # only now: the failed engine's process was still ending
            self._free[role].append(self._ask(self._roles[role].pool))
        return self._places[self._free[role].pop(0)].group

    def arrive(self, engine: str, role: str, place: str | None) -> None:
        """Record that an engine's process has started."""
        self._roles[role].running.add(engine)
        self._roles[role].starting.add(engine)
        if place in self._places:
            self._places[place].is_taken = True

    def up(self, engine: str) -> None:
        """Record that an engine has loaded."""
        for role in self._roles.values():
            if engine in role.starting:
                role.starting.remove(engine)
                role.was_up = True

    def give_up(self, engine: str, role: str, place: str | None, node: str, error: CgdError) -> None:
        """Record that an engine cannot start on this node; its place is replaced by one elsewhere.

        An engine that was up once gets no replacement before the run's next stream; until then it keeps its place
        (`place` is None).
        """
        state = self._roles[role]
        state.running.discard(engine)
        state.starting.discard(engine)
        state.failures.append(_Failure(node, error))
        if place in self._places:
            state.left.append(place)
            state.owed += 1

    def broken(self) -> CgdError | None:
        """Return the engine's own error if fewer than `min_replicas` can ever be up."""
        return next((error for role in self._roles.values() if (error := self._broken(role))), None)

    def is_vacated(self) -> bool:
        """Whether nothing runs in any place. Removing a place earlier kills its actor, but not vLLM's processes."""
        free = ray.available_resources() if self._places else {}
        return all(free.get(f"bundle_group_{place}", _VACANT) >= _VACANT for place in self._places)

    def remove_places(self) -> None:
        """Release all places; actors still running there are killed."""
        self._remove(list(self._places))

    def _remove(self, places: list[str]) -> None:
        for place in places:
            remove_placement_group(self._places.pop(place).group)
        places.clear()

    def _ask(self, pool: Pool, hint: str | None = None) -> str:
        role = self._roles[pool.role]
        avoided = sorted({failure.node for failure in role.failures})
        selector = {_NODE: f"!in({','.join(avoided)})"} if role.tries_left else _NOWHERE
        group = group_near(pool.demand.bundle(), hint, selector if avoided else None)
        name: str = group.id.hex()
        self._places[name] = _Place(pool.role, group)
        return name

    def _broken(self, role: _Role) -> CgdError | None:
        if not role.failures:
            return None
        error = role.failures[-1].error
        if role.never_starts():
            return error
        if len(role.running) + self._to_come(role) >= role.pool.min_replicas:
            role.short_since = None
            return None
        role.short_since = role.short_since or time.monotonic()
        return error if time.monotonic() - role.short_since > _PLACEMENT_WAIT_S else None

    def _to_come(self, role: _Role) -> int:
        """Count engines that have not started yet but will."""
        waiting = [one.group for one in self._places.values() if one.role == role.pool.role and not one.is_taken]
        if role.pool.may_come and role.tries_left:
            return role.owed + len(waiting)
        placed: int = sum(placement_group_table(group)["state"] == "CREATED" for group in waiting)
        return role.owed + placed
