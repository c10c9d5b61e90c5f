"""What Ray's own autoscaler would do about a cluster's specification and what the phases of a recipe ask for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._common.utils import resources_from_ray_options
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.common import InstanceUtil
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingReply, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint, GangResourceRequest, NodeState
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind
from ray.train._internal.autoscaling_coordinator_client import build_train_resource_request

from cgd_ray.compat.ray_data import WITHOUT_CORES
from cgd_ray.config.recipe import Recipe
from cgd_ray.config.run import StorageSection
from cgd_ray.execution.chains import build_chain
from cgd_ray.generation.run import engine_of
from cgd_ray.runtime.cluster import read_cluster
from cgd_ray.runtime.device import PRETEND_GPUS
from cgd_ray.training.launch.resources import worker_resources

Bundle = dict[str, float]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """A placement group: its bundles are there together, or not at all."""

    bundles: list[Bundle]
    strategy: str


@dataclass(frozen=True)
class Phase:
    """What is asked for at one time."""

    name: str
    single: list[Bundle]
    """By tasks and actors."""
    groups: list[Group]
    reserved: list[Bundle] = field(default_factory=list)
    """What Ray Train asks the autoscaler for beside its placement group."""


class Autoscaler:
    """The autoscaler of a cluster of which the head alone is running.

    Args:
        spec: of a RayCluster.
    """

    def __init__(self, spec: Spec) -> None:
        resource = {"metadata": {"name": "cgd", "namespace": "cgd"}, "spec": spec}
        self._config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource))
        self.head: Bundle = self._types[self._config.get_head_node_type()].resources
        self.workers: dict[str, Bundle] = {
            name: kind.resources for name, kind in self._types.items() if name != self._config.get_head_node_type()
        }

    def pretend_packages(self, monkeypatch: Any) -> None:
        """Let the project's code ask for GPUs where this cluster's image would be the one for GPUs."""
        if any(kind.get("GPU") for kind in self.workers.values()):
            monkeypatch.setenv(PRETEND_GPUS, "1")

    def decide(self, phase: Phase) -> SchedulingReply:
        """Ray's decision on a phase that starts now."""
        reserved = ClusterResourceConstraint(resource_requests=_counted(phase.reserved))
        request = SchedulingRequest(
            node_type_configs=self._types,
            max_num_nodes=self._config.get_max_num_nodes(),
            resource_requests=_counted(phase.single),
            cluster_resource_constraints=[reserved] if phase.reserved else [],
            gang_resource_requests=[_gang(number, group) for number, group in enumerate(phase.groups)],
            current_instances=[self._running_head()],
            disable_launch_config_check=self._config.disable_launch_config_check(),
        )
        return ResourceDemandScheduler(event_logger=None).schedule(request)

    @property
    def _types(self) -> Any:
        return self._config.get_node_type_configs()

    def _running_head(self) -> AutoscalerInstance:
        instance = InstanceUtil.new_instance("head", self._config.get_head_node_type(), Instance.RAY_RUNNING)
        instance.node_kind, instance.node_id = NodeKind.HEAD, "head"
        node = NodeState(total_resources=self.head, available_resources=self.head)
        return AutoscalerInstance(cloud_instance_id="head", im_instance=instance, ray_node=node)


def launched(reply: SchedulingReply) -> dict[str, int]:
    """Nodes of each group that are asked for; infeasible demands fail the test."""
    gangs = [request for gang in reply.infeasible_gang_resource_requests for request in gang.requests]
    assert not reply.infeasible_cluster_resource_constraints
    assert not ResourceRequestUtil.to_resource_maps([*reply.infeasible_resource_requests, *gangs])
    return {request.instance_type: request.count for request in reply.to_launch}


def phases(recipe: Recipe) -> Iterable[Phase]:
    """The pipeline's phases as they follow each other, each with all that it holds at one time."""
    readers = [resources_from_ray_options({"num_cpus": WITHOUT_CORES["num_cpus"]})]
    student, teacher = (_engines(recipe, role, sharing=1) for role in ("student", "teacher"))
    yield Phase("drafts", readers, student)
    yield Phase("critiques and refinements", readers, teacher)
    if recipe.generation.execution == "streaming":  # `auto` looks whether there is room for both
        both = [group for role in ("student", "teacher") for group in _engines(recipe, role, sharing=2)]
        yield Phase("generation", readers, both)
    if recipe.training.enabled:
        yield _training(recipe)
    if recipe.evaluation.enabled:
        yield Phase("evaluation", [], student)


def _engines(recipe: Recipe, role: str, *, sharing: int) -> list[Group]:
    """The places that a role's pool asks for, one for each engine."""
    options, model = engine_of(recipe, role)
    demand = options.demand(read_cluster(), sharing=sharing, key="engine")
    chain = build_chain(role, options, model, [], demand=demand, storage=StorageSection())
    return [] if chain.demand.is_nothing else [Group([chain.demand.bundle()], "STRICT_PACK")] * chain.replicas


def _training(recipe: Recipe) -> Phase:
    scaling = worker_resources(recipe.training).scaling(recipe.training)
    bundles, _ = build_train_resource_request(scaling, recipe.training.workers)
    return Phase("training", [], [Group(bundles, scaling.placement_strategy)], reserved=bundles)


def only_running(nodes: list[Mapping[str, float]], monkeypatch: Any) -> None:
    """Let the project's code see these nodes where it asks Ray for the cluster's."""
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": dict(node)} for node in nodes])


def _counted(bundles: list[Bundle]) -> Any:
    return ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(bundle) for bundle in bundles])


def _gang(number: int, group: Group) -> GangResourceRequest:
    """As Ray's state service hands a pending placement group on to the autoscaler."""
    kinds = ResourceRequestUtil.PlacementConstraintType
    kind = {"STRICT_PACK": kinds.AFFINITY, "STRICT_SPREAD": kinds.ANTI_AFFINITY}.get(group.strategy)
    constraints = [(kind, f"_PG_{number}", "")] if kind else None
    return GangResourceRequest(requests=[ResourceRequestUtil.make(bundle, constraints) for bundle in group.bundles])
