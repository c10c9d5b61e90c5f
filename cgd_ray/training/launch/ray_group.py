"""Start and end of Ray Train's worker group: gloo's interface, and final failures."""

from collections.abc import Callable, Mapping
from typing import Protocol

import ray.util
from ray.train import UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from cgd_ray.training.distributed import bind_gloo
from cgd_ray.training.job import GpuMemoryError

_TorchBackend: type[Backend] = TorchConfig().backend_cls


class _Group(Protocol):
    def execute(self, function: Callable[[], None]) -> object: ...


class NodeTorchConfig(TorchConfig):
    """Ray's configuration, but gloo binds to the interface with the node's address in Ray."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Class that starts the process group."""
        return _NodeBackend


class _NodeBackend(_TorchBackend):
    def on_start(self, worker_group: _Group, backend_config: TorchConfig) -> None:
        worker_group.execute(_bind_gloo_to_node)
        super().on_start(worker_group, backend_config)


def _bind_gloo_to_node() -> None:
    bind_gloo(ray.util.get_node_ip_address())


class FinalFailures(UserCallback):
    """Ends the training if a rank's GPU is full.

    Ray Train restarts a group with a failed worker up to `max_failures` times, but never after an error in its
    controller, where this callback runs.
    """

    def after_exception(self, *, worker_exceptions: Mapping[int, Exception], **_: object) -> None:
        """Raise a final failure; the controller then ends the waiting ranks.

        Raises:
            GpuMemoryError: the error of the first such rank.
        """
        for error in worker_exceptions.values():
            if isinstance(error, GpuMemoryError):
                raise error
