"""What an engine asks of Ray, given what the cluster has."""

import contextlib
import math
import time
from dataclasses import dataclass

import ray
import ray.exceptions
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cgd_ray.config.engine import ScriptedOptions, TeacherOpenAI, VllmOptions
from cgd_ray.engines.vllm_arguments import engine_gpus
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.runtime import processes
from cgd_ray.runtime.device import asks_for_gpus, require_gpu_packages
from cgd_ray.runtime.session import joins_cluster

log = structlog.get_logger(__name__)
_RETURN_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_ROUNDING = 1e-6

EngineOptions = VllmOptions | TeacherOpenAI | ScriptedOptions


@dataclass(frozen=True)
class Cluster:
    """What placement needs to know of a Ray cluster."""

    cpus: float
    gpus: float
    largest_node_cpus: float


@dataclass(frozen=True)
class Demand:
    """Resources of one engine, or of several together."""

    cpus: float
    gpus: float

    def fits_into(self, other: "Demand") -> bool:
        """Whether the other is as large."""
        return self.cpus <= other.cpus + _ROUNDING and self.gpus <= other.gpus + _ROUNDING

    def fits(self, cluster: Cluster) -> bool:
        """Whether the cluster has as much."""
        return self.cpus <= cluster.cpus and self.gpus <= cluster.gpus


def read_cluster() -> Cluster:
    """The connected cluster."""
    resources = ray.cluster_resources()
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return Cluster(resources.get("CPU", 0.0), resources.get("GPU", 0.0), max(nodes, default=0.0))


def engine_demand(options: EngineOptions, cluster: Cluster, *, sharing: int) -> Demand:
    """CPUs and GPUs of one engine when `sharing` engines run at once.

    A vLLM engine holds its GPUs in one actor (tensor and pipeline parallel on one node); without GPUs it gets an equal
    share of a node's cores. An HTTP client needs next to nothing.

    Raises:
        ConfigError: GPUs for packages that compute on CPU, or CPU packages on a cluster with GPUs.
    """
    if isinstance(options, TeacherOpenAI):
        return Demand(cpus=0.01, gpus=0)
    if isinstance(options, ScriptedOptions):
        return Demand(cpus=0.01, gpus=options.gpus)
    if options.gpus_per_worker is None:
        require_same_packages("engine", cluster.gpus)
    gpus = engine_gpus(options)
    require_gpu_packages("engine.gpus_per_worker", gpus)
    if gpus:
        return Demand(cpus=options.cpus or 1, gpus=gpus)
    return Demand(cpus=options.cpus or max(1, math.floor(cluster.largest_node_cpus / sharing)), gpus=0)


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


def require_room(what: str, demand: Demand) -> None:
    """Refuse what could only wait for ever: a cluster that this command started does not grow.

    Raises:
        ConfigError: names what asks for more than there is.
    """
    cluster = read_cluster()
    if not joins_cluster() and not demand.fits(cluster):
        raise ConfigError(
            f"{what} asks for {demand.cpus:g} CPUs and {demand.gpus:g} GPUs at once, and this machine has "
            f"{cluster.cpus:g} and {cluster.gpus:g}; ask for less, or join a cluster (RAY_ADDRESS, or a submitted job)"
        )


def held_room() -> Demand:
    """What is held at the moment, by whomever."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return Demand(*(total.get(kind, 0.0) - free.get(kind, 0.0) for kind in ("CPU", "GPU")))


def require_returned(before: Demand) -> None:
    """Wait until engines or workers that have ended gave back what they held: others could wait for it for ever.

    Actors and placement groups hold CPUs or GPUs, so that these tell of both.

    Raises:
        CgdError: more is held than before, on a cluster of this command's own. Elsewhere somebody else may have taken
            it: a warning.
    """
    deadline = time.monotonic() + _RETURN_SECONDS
    while not (now := held_room()).fits_into(before):
        if time.monotonic() > deadline:
            text = (
                f"engines or workers have ended, but {now.cpus:g} CPUs and {now.gpus:g} GPUs are held where "
                f"{before.cpus:g} and {before.gpus:g} were before: see `ray status` for who holds them"
            )
            if joins_cluster():
                log.warning(text)
                break
            raise CgdError(text)
        time.sleep(_LOOK_SECONDS)
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
    ready, _ = ray.wait(looks, num_returns=len(looks), timeout=_RETURN_SECONDS)
    seen = 0
    for one in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            _say_ended(ray.get(one))
            seen += 1
    if seen < len(nodes):
        log.warning("nodes on which nobody looked for processes of engines that are gone", nodes=len(nodes) - seen)


def _say_ended(count: int) -> None:
    if count:
        log.warning("ended processes of engines that are gone", count=count)


def fits(options: list[EngineOptions], cluster: Cluster) -> bool:
    """Whether all replicas of these engines can run at once without starving each other.

    On CPU, two engines at once halve each other's cores and gain nothing from overlap, unless both say how many
    they want.
    """
    demands = [(engine_demand(entry, cluster, sharing=1), _replicas(entry)) for entry in options]
    cpus = sum(demand.cpus * replicas for demand, replicas in demands)
    return Demand(cpus, sum(demand.gpus * replicas for demand, replicas in demands)).fits(cluster)


def _replicas(options: EngineOptions) -> int:
    return 1 if isinstance(options, TeacherOpenAI) else options.replicas
