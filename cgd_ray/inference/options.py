"""Options of a backend in a recipe, and the interface that the rest of the system uses.

A backend is one options class, a subclass of `EngineOptions`, and the engine that it creates. Add the class to the
unions in `cgd_ray.config.engine`.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from cgd_ray.config.base import Section

if TYPE_CHECKING:
    from cgd_ray.config.run import StorageSection
    from cgd_ray.inference.base import Engine
    from cgd_ray.runtime.cluster import Cluster
    from cgd_ray.runtime.demand import Demand

PositiveInt = Annotated[int, Field(ge=1)]


class ModelRef(NamedTuple):
    """A model by name: hub id, directory, `s3://` prefix, or an endpoint's model name."""

    name: str
    revision: str | None = None


class PoolSize(NamedTuple):
    """Number of engines of one kind that run at once, and number of rows per engine."""

    replicas: int
    min_replicas: int
    """Minimum number of engines with which the run continues."""
    in_flight: int
    """Number of rows that one engine works on at a time."""


class EngineOptions(Section, ABC):
    """Options of one backend."""

    has_weights: ClassVar[bool] = False
    """Whether the model's files, tokenizer and chat template included, are on our own devices."""
    is_remote: ClassVar[bool] = False
    """Whether it uses no cores and no GPUs of the cluster."""

    @abstractmethod
    def pool_size(self) -> PoolSize:
        """Return the number of engines at once, and of rows per engine."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Return the options that change results; all others (replicas, parallelism, URL, ...) do not count."""

    @abstractmethod
    def model_identity(self, model: ModelRef, storage: "StorageSection", key: str) -> str:
        """Return the model's identity for fingerprints.

        Raises:
            ConfigError: the model does not exist; `key` is the recipe key that names it.
        """

    @abstractmethod
    def demand(self, cluster: "Cluster", *, sharing: int, key: str) -> "Demand":
        """Return the CPUs and GPUs of one engine on one node.

        Args:
            cluster: current state of the cluster.
            sharing: number of engines that run at once and share a node's cores.
            key: recipe section that makes the demand.

        Raises:
            ConfigError: the installed packages compute on another device.
        """

    @abstractmethod
    def make_engine(self, model: ModelRef, storage: "StorageSection", demand: "Demand", spent: float) -> "Engine":
        """Create an engine without starting it.

        Args:
            model: model that it loads or requests.
            storage: how an `s3://` model is accessed.
            demand: resources that Ray gave it, see `demand`.
            spent: money already paid for the stages' results.
        """

    def check(self, key: str) -> None:
        """Detect errors that would otherwise appear only after hours; queries an endpoint, loads no model.

        Raises:
            ConfigError: an error; the text names `key`, the section of the recipe, and the fix.
        """

    def pinned(self, key: str, dtype: str | None) -> Self:
        """Return the options with files and `auto` resolved; `dtype` is the run's compute type so far."""
        del key
        return self.typed(dtype)

    def typed(self, dtype: str | None) -> Self:
        """Return the options with the run's compute type so far, if they leave it open."""
        del dtype
        return self

    def price(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the cost of these tokens, in the currency of the recipe's prices."""
        del prompt_tokens, completion_tokens
        return 0.0

    def money_ceiling(self) -> float | None:
        """Return the maximum cost of the tables; None means no limit."""
        return None

    def secret_variables(self) -> list[str]:
        """Return the environment variables whose values must not appear in any text."""
        return []


class Replicated(EngineOptions):
    """Engines of one kind, several of which may run at once."""

    replicas: PositiveInt = 1
    """Number of engines."""
    min_replicas: PositiveInt = 1
    """Minimum number of engines. If some cannot start or are lost, the run continues with at least this many."""

    max_in_flight: PositiveInt = 64
    """Number of rows that one engine works on at a time."""

    def pool_size(self) -> PoolSize:
        """Return the number of engines at once, and of rows per engine."""
        return PoolSize(self.replicas, self.min_replicas, self.max_in_flight)

    @model_validator(mode="after")
    def _minimum_is_no_more(self) -> Self:
        if self.min_replicas > self.replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is larger than replicas {self.replicas}. Fix: lower it, or raise "
                "replicas"
            )
        return self
