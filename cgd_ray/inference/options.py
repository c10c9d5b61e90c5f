"""What a recipe says of a backend, and all that the rest of the system asks of one.

A backend is one options class, a subclass of `EngineOptions`, and the engine that it makes. Its name goes into the
unions of `cgd_ray.config.engine`.
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
    """A model by name: hub id, directory, `s3://` prefix, or what an endpoint calls it."""

    name: str
    revision: str | None = None


class PoolSize(NamedTuple):
    """How many engines of one kind run at once, and how many rows each works on."""

    replicas: int
    min_replicas: int
    """The run goes on with fewer engines, down to this."""
    in_flight: int
    """Rows that one engine works on at a time."""


class EngineOptions(Section, ABC):
    """Options of one backend."""

    has_weights: ClassVar[bool] = False
    """Whether the model's files are on our own devices, tokenizer and chat template included."""
    is_remote: ClassVar[bool] = False
    """Whether it takes no cores and no GPUs of the cluster."""

    @abstractmethod
    def pool_size(self) -> PoolSize:
        """Engines at once, and rows of each."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """The options that change results; all else (replicas, parallelism, URL, ...) does not count."""

    @abstractmethod
    def model_identity(self, model: ModelRef, storage: "StorageSection", key: str) -> str:
        """What makes this model this model in fingerprints.

        Raises:
            ConfigError: there is no such model; `key` is the recipe's key that names it.
        """

    @abstractmethod
    def demand(self, cluster: "Cluster", *, sharing: int, key: str) -> "Demand":
        """CPUs and GPUs of one engine on one node.

        Args:
            cluster: as it is now.
            sharing: engines that run at once and share a node's cores.
            key: section of the recipe that asks.

        Raises:
            ConfigError: the installed packages compute on another device.
        """

    @abstractmethod
    def make_engine(self, model: ModelRef, storage: "StorageSection", demand: "Demand", spent: float) -> "Engine":
        """An engine that is not started yet.

        Args:
            model: what it loads or asks.
            storage: how an `s3://` model is reached.
            demand: what Ray gave it, see `demand`.
            spent: money that was paid for the stages' results before.
        """

    def check(self, key: str) -> None:
        """Find out what would fail only after hours; asks an endpoint, loads no model.

        Raises:
            ConfigError: names `key`, the section of the recipe, and the mend.
        """

    def pinned(self, key: str, dtype: str | None) -> Self:
        """The options with files and `auto` replaced by what they stand for; `dtype` is what the run has had so far."""
        del key
        return self.typed(dtype)

    def typed(self, dtype: str | None) -> Self:
        """The options with the compute type that the run has had so far, where they leave it open."""
        del dtype
        return self

    def price(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost, in the currency of the recipe's prices."""
        del prompt_tokens, completion_tokens
        return 0.0

    def money_ceiling(self) -> float | None:
        """Money that the tables may cost."""
        return None

    def secret_variables(self) -> list[str]:
        """Environment variables whose values no text may show."""
        return []


class Replicated(EngineOptions):
    """Engines of one kind, several of which may run at once."""

    replicas: PositiveInt = 1
    """Number of engines."""
    min_replicas: PositiveInt = 1
    """The run goes on with fewer engines, down to this, where some cannot start or are lost."""

    max_in_flight: PositiveInt = 64
    """Rows that one engine works on at a time."""

    def pool_size(self) -> PoolSize:
        """Engines at once, and rows of each."""
        return PoolSize(self.replicas, self.min_replicas, self.max_in_flight)

    @model_validator(mode="after")
    def _minimum_is_no_more(self) -> Self:
        if self.min_replicas > self.replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is larger than replicas {self.replicas}. Fix: lower it, or raise "
                "replicas"
            )
        return self
