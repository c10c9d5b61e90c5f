"""Options of a teacher behind an OpenAI-compatible HTTP endpoint."""

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from cgd_ray.config.places import PlainUrl
from cgd_ray.inference.options import EngineOptions, ModelRef, PoolSize, PositiveInt
from cgd_ray.runtime.demand import Demand

if TYPE_CHECKING:
    from cgd_ray.config.run import StorageSection
    from cgd_ray.inference.base import Engine
    from cgd_ray.runtime.cluster import Cluster

_NOT_EXTRA = {
    "model", "messages", "n", "best_of", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed",
    "stream", "tools", "chat_template_kwargs",
}  # fmt: skip


_SECRET_FIELD = re.compile(r"api[_-]?key|secret|password|authorization|(access|auth|bearer)[_-]?token", re.IGNORECASE)


class OpenAIOptions(EngineOptions):
    """A teacher behind any OpenAI-compatible endpoint."""

    is_remote: ClassVar[bool] = True
    max_model_len: ClassVar[int | None] = None
    chat_template: ClassVar[str | None] = None

    type: Literal["openai"]
    model: str
    revision: str | None = None
    """Version of the model for fingerprints, if the name alone does not identify it."""
    base_url: PlainUrl = "https://api.openai.com/v1"
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = "OPENAI_API_KEY"
    """Name of the environment variable with the API key; null sends no key."""
    concurrency: PositiveInt = 32
    """Maximum number of requests in flight."""
    requests_per_minute: PositiveInt | None = None
    max_retries: Annotated[int, Field(ge=0)] = 6
    """Tries after the first, with exponential backoff that honours Retry-After. A refusal (429) does not count as a try
    while the endpoint serves other rows."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    max_wait_s: Annotated[float, Field(gt=0)] = 600.0
    """Longest wait in seconds that a refusal may ask for. A longer one, such as for a daily quota, stops the run, since
    engines on GPUs would wait too; rerun the same command to resume."""
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = 0.0
    price_per_million_completion_tokens: Annotated[float, Field(ge=0)] = 0.0
    spend_ceiling: Annotated[float, Field(gt=0)] | None = None
    """Maximum cost of the teacher's tables, in the currency of the prices, including what earlier runs paid for their
    rows. A request that may exceed it is not sent; the run stops and can be resumed."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's field for the completion limit; OpenAI's reasoning models accept only `max_completion_tokens`."""
    omit: list[Literal["temperature", "top_p", "seed"]] = []
    """Fields that are not sent, for models that refuse them; the endpoint's own defaults then apply."""
    reasoning_tags: tuple[str, str] | None = None
    """Start and end tags of thinking in the texts, for instance `["<think>", "</think>"]`. Thinking is removed; a
    completion that ends while thinking counts as truncated. Thinking in a separate field needs no tags."""
    extra_body: dict[str, Any] = {}
    """Additional fields of each request's body."""

    @field_validator("extra_body")
    @classmethod
    def _says_no_tokens(cls, body: dict[str, object]) -> dict[str, object]:
        if taken := _NOT_EXTRA & body.keys():
            raise ValueError(
                f"{sorted(taken)[0]} has a key of its own, or changes what a request costs. Fix: leave it out"
            )
        if keys := [name for name in body if _SECRET_FIELD.search(name)]:
            raise ValueError(
                f"{keys[0]!r} would be stored with each run. Fix: put the key into the variable that api_key_env names"
            )
        return body

    def pool_size(self) -> PoolSize:
        """Return one client with `concurrency` rows in flight."""
        return PoolSize(1, 1, self.concurrency)

    def identity(self) -> dict[str, object]:
        """Return the fields of the request's body that change answers."""
        keys = ("extra_body", *(key for key in ("omit", "reasoning_tags") if getattr(self, key)))
        return {key: getattr(self, key) for key in keys}

    def model_identity(self, model: ModelRef, storage: "StorageSection", key: str) -> str:
        """Return the model's name, and its revision from the recipe."""
        del storage, key
        return f"openai:{model.name}" + (f"@{model.revision}" if model.revision else "")

    def demand(self, cluster: "Cluster", *, sharing: int, key: str) -> Demand:
        """Return an empty demand: any other would keep or start a node with GPUs if the head offers no CPUs."""
        del cluster, sharing, key
        return Demand(cpus=0, gpus=0)

    def make_engine(self, model: ModelRef, storage: "StorageSection", demand: Demand, spent: float) -> "Engine":
        """Create an `OpenAIEngine`."""
        from cgd_ray.inference.openai.engine import OpenAIEngine  # takes a second; readers of rows do not need it

        del model, storage, demand
        return OpenAIEngine(self, spent)

    def check(self, key: str) -> None:
        """Ask the endpoint for its models.

        Raises:
            ConfigError: the endpoint cannot be reached, refuses the key, or does not have the model.
        """
        from cgd_ray.inference.openai.engine import check_endpoint

        del key
        check_endpoint(self)

    def price(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the cost of these tokens, by the recipe's prices."""
        prompt, completion = self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6

    def money_ceiling(self) -> float | None:
        """Return the maximum cost of the teacher's tables."""
        return self.spend_ceiling

    def secret_variables(self) -> list[str]:
        """Return the variable with the key."""
        return [self.api_key_env] if self.api_key_env else []

    @model_validator(mode="after")
    def _ceiling_needs_prices(self) -> Self:
        prices = self.price_per_million_prompt_tokens + self.price_per_million_completion_tokens
        if self.spend_ceiling is not None and prices == 0:
            raise ValueError(
                "spend_ceiling without prices. Fix: set price_per_million_prompt_tokens and ..._completion_tokens"
            )
        return self
