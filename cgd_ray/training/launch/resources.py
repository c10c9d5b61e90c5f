"""Ray resources of a training worker, and Ray Train's access to the store."""

from dataclasses import dataclass

import pyarrow.fs
import ray.train
import structlog

from cgd_ray.config.training import TrainingSection
from cgd_ray.runtime.capacity import Wanted, require_room, require_same_packages
from cgd_ray.runtime.cluster import Cluster, read_cluster
from cgd_ray.runtime.demand import Demand
from cgd_ray.runtime.device import Device, asks_for_gpus, installed_device, require_gpu_packages
from cgd_ray.runtime.packing import pack
from cgd_ray.storage.filesystem import Store

_CPUS_BESIDE_A_GPU = 8
_RESIZE_SECONDS = 600.0  # a larger group restarts from the last checkpoint: not for every new node
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class WorkerResources:
    """Resources of one worker."""

    device: Device
    cpus: int
    gpus: float

    def scaling(self, training: TrainingSection) -> ray.train.ScalingConfig:
        """Return the scaling configuration of Ray Train."""
        amounts = {"CPU": float(self.cpus)} | ({"GPU": self.gpus} if self.gpus else {})
        return ray.train.ScalingConfig(
            num_workers=(training.min_workers, training.workers) if training.min_workers else training.workers,
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            use_gpu=self.gpus > 0,
            resources_per_worker=amounts,
            accelerator_type=training.resources.accelerator_type,
        )


def worker_resources(training: TrainingSection) -> WorkerResources:
    """Fill in resources that the recipe leaves open, from the installed packages and the cluster's current nodes.

    Raises:
        ConfigError: GPUs are requested with CPU packages, or CPU packages are installed on a cluster with GPUs.
    """
    wanted = training.resources
    if wanted.gpus_per_worker is None:
        require_same_packages("training.resources", read_cluster().gpus)
    gpus = int(asks_for_gpus()) if wanted.gpus_per_worker is None else wanted.gpus_per_worker
    require_gpu_packages("training.resources.gpus_per_worker", gpus)
    cpus = wanted.cpus_per_worker or _default_cpus(training.workers, gpus, wanted.accelerator_type)
    return WorkerResources(installed_device() if gpus else "cpu", cpus, gpus)


def check_room(training: TrainingSection, resources: WorkerResources, *, is_next: bool) -> None:
    """Check that the workers can fit on the cluster; warn if training will wait for it to grow.

    Args:
        training: section of the recipe.
        resources: of one worker.
        is_next: the nodes are needed now: an autoscaler that does not list its shapes of nodes is asked for all of
            them, see `require_room`.

    Raises:
        ConfigError: no node can hold a worker, or a cluster with known limits can never hold all of them.
    """
    fewest = training.min_workers or training.workers
    demand = Demand(resources.cpus, resources.gpus, training.resources.accelerator_type)
    require_room([Wanted(f"training with {fewest} workers", demand, fewest, fewest)], may_start_nodes=is_next)
    if pack([demand] * fewest, Cluster(read_cluster().nodes)) is None:
        log.warning(
            "the nodes do not hold all workers of the training; waiting for more nodes",
            workers=fewest, cpus_per_worker=resources.cpus, gpus_per_worker=resources.gpus,
        )  # fmt: skip


def _default_cpus(workers: int, gpus: float, accelerator_type: str | None) -> int:
    """Return the most CPUs per worker with which all workers fit on the current nodes; 1 if they do not fit."""
    cluster = read_cluster()
    largest = int(max((node.cpus for node in cluster.nodes if node.gpus >= gpus), default=1))
    for each in range(min(largest, _CPUS_BESIDE_A_GPU) if gpus else largest, 1, -1):
        if pack([Demand(each, gpus, accelerator_type)] * workers, Cluster(cluster.nodes)) is not None:
            return each
    return 1


def pyarrow_filesystem(store: Store) -> pyarrow.fs.FileSystem:
    """Return the store's file system as pyarrow's, which Ray Train requires; keys come from the environment.

    On S3 it uses s3fs like every other access. Arrow's own S3 client writes an empty object for each parent folder,
    which not every S3 server accepts. Listings are not cached: other processes write here.
    """
    if not store.is_s3:
        return pyarrow.fs.LocalFileSystem()
    fresh = type(store.fs)(**store.fs.storage_options, use_listings_cache=False)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fresh))
