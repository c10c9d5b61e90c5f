"""Engines that complete prompts: vLLM on our own devices, an OpenAI-compatible endpoint, a scripted one for tests."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cgd_ray.config.base import Section
from cgd_ray.config.places import ModelPlace

PositiveInt = Annotated[int, Field(ge=1)]


_PARALLEL = "engines are multiplied with replicas, and split with tensor_parallel_size and pipeline_parallel_size"
_OWN_ARGUMENTS = {
    **{
        name: f"set {name} beside engine_args"
        for name in (
            "dtype", "quantization", "max_model_len", "reasoning_parser", "tensor_parallel_size",
            "pipeline_parallel_size", "enforce_eager",
        )
    },
    **dict.fromkeys(("model", "revision", "tokenizer", "served_model_name"), "set the model and its revision"),
    **dict.fromkeys(("prefill_context_parallel_size", "nnodes", "node_rank"), _PARALLEL),
    "device_ids": "Ray chooses the GPUs of an engine",
    "distributed_executor_backend": "leave it out: the workers of an engine are processes of one node",
    "generation_config": "leave it out: a model's own sampling defaults never apply",
}  # fmt: skip
"""Arguments of vLLM that an engine sets itself, and what to write instead."""


class VllmEngineOptions(Section):
    """One vLLM engine, wherever it runs: drafts, critiques, refinements, evaluation, and the served student."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Compute type. `auto`: bfloat16 on GPUs and on CPUs that multiply it natively (AVX512-BF16, AMX), else float32."""
    quantization: str | None = None
    max_model_len: PositiveInt | None = None
    """Longest prompt plus completion in tokens; none takes the model's own."""
    reasoning_parser: str | None = None
    """vLLM's parser of thinking: it is cut off, and a completion that never left it counts as truncated."""

    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    accelerator_type: str | None = None
    """Ray accelerator type, for instance `H100`; none takes any node."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | None = None
    """GPUs of each of the TP x PP workers: 1, a fraction of one (a single worker only), or 0 for CPU. None: 1 where the
    installed packages compute on GPUs (`make setup DEVICE=gpu`), else 0."""
    cpus: PositiveInt | None = None
    """CPU cores of one engine; on CPU they are its threads. None: 1 beside GPUs; on CPU all of the node's, or an equal
    share when several engines run at once."""
    kv_cache_gib: Annotated[float, Field(gt=0)] = 2.0
    """Key-value cache of an engine on CPU, in GiB (on GPU, vLLM fills the memory that is left)."""
    enforce_eager: bool | None = None
    """Skip compilation; none means eager on CPU (saves 75 s at the start) and compiled on GPU."""
    engine_args: dict[str, Any] = {}
    """Any other argument of vLLM's AsyncEngineArgs. Another value, another table, but for those that only say how much
    at a time and where it lies (`gpu_memory_utilization`, `max_num_batched_tokens`, ...)."""

    @field_validator("engine_args")
    @classmethod
    def _says_nothing_twice(cls, arguments: dict[str, object]) -> dict[str, object]:
        for name in arguments:
            mend = _PARALLEL if name.startswith("data_parallel_") else _OWN_ARGUMENTS.get(name)
            if mend is not None:
                raise ValueError(f"{name} is decided by cgd-ray. Fix: {mend}")
        return arguments

    @model_validator(mode="after")
    def _demand_is_possible(self) -> Self:
        share = self.gpus_per_worker
        if share is not None and 0 < share < 1 and self.devices > 1:
            raise ValueError(
                f"gpus_per_worker {share:g} with {self.devices} workers (TP x PP): only an engine of one worker shares "
                "its GPU. Fix: set gpus_per_worker to 1, or both parallel sizes to 1"
            )
        if share is not None and 0 < share < 1:
            self._require_a_share_of_memory(share)
        if share == 0 and self.accelerator_type is not None:
            raise ValueError(f"accelerator_type {self.accelerator_type} needs gpus_per_worker above 0")
        return self

    def _require_a_share_of_memory(self, share: float) -> None:
        memory = self.engine_args.get("gpu_memory_utilization", 0.0)
        if not isinstance(memory, int | float) or memory > share:
            raise ValueError(
                f"engine_args: gpu_memory_utilization {memory} is of the whole GPU, of which the engine has {share:g}. "
                f"Fix: leave it out, or take a number of at most {share:g}"
            )
        if "kv_cache_memory_bytes" in self.engine_args:
            raise ValueError(
                f"engine_args: kv_cache_memory_bytes with gpus_per_worker {share:g} takes no account of the GPU's "
                "other engines. Fix: set gpu_memory_utilization"
            )

    @property
    def devices(self) -> int:
        """Workers of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class Replicated(Section):
    """Engines of one kind, several of which may run at once."""

    replicas: PositiveInt = 1
    """Number of engines."""
    min_replicas: PositiveInt = 1
    """The run goes on with fewer engines, down to this, where some cannot start or are lost."""

    @model_validator(mode="after")
    def _minimum_is_no_more(self) -> Self:
        if self.min_replicas > self.replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is larger than replicas {self.replicas}. Fix: lower it, or raise "
                "replicas"
            )
        return self


class VllmOptions(VllmEngineOptions, Replicated):
    """A Ray Data pool of actors, each around one vLLM AsyncLLM."""

    type: Literal["vllm"] = "vllm"
    chat_template: str | None = None
    """A chat template (Jinja), or the file that holds it, for a model that brings none. A student is trained, exported
    and served with it, too. None takes the model's own."""
    max_in_flight: PositiveInt = 64
    """Rows that one engine works on at a time."""
    start_timeout_s: PositiveInt = 1800
    """Longest wait for the model to load."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Longest wait for one completion; then the row has failed, and the next run tries it again."""


class TeacherVllm(VllmOptions):
    """The teacher on our own devices."""

    model: ModelPlace
    """Hub id, directory or `s3://` prefix."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; a branch is resolved to its commit."""


_NOT_EXTRA = {
    "model", "messages", "n", "best_of", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed",
    "stream", "tools", "chat_template_kwargs",
}  # fmt: skip


_SECRET_FIELD = re.compile(r"api[_-]?key|secret|password|authorization|(access|auth|bearer)[_-]?token", re.IGNORECASE)


class TeacherOpenAI(Section):
    """A teacher behind any OpenAI-compatible endpoint."""

    type: Literal["openai"]
    model: str
    revision: str | None = None
    """What to call this version of the model in fingerprints, where the name alone does not say."""
    base_url: str = "https://api.openai.com/v1"
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = "OPENAI_API_KEY"
    """Name of the environment variable with the key; none sends no key."""
    concurrency: PositiveInt = 32
    """Requests in flight."""
    requests_per_minute: PositiveInt | None = None
    max_retries: Annotated[int, Field(ge=0)] = 6
    """Tries after the first, with exponential backoff, honouring Retry-After. A refusal (429) is no try as long as the
    endpoint serves other rows."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    max_wait_s: Annotated[float, Field(gt=0)] = 600.0
    """A refusal that asks for a longer wait than this (a quota of the day) stops the run, which the same command
    continues: engines on GPUs would wait, too."""
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = 0.0
    price_per_million_completion_tokens: Annotated[float, Field(ge=0)] = 0.0
    spend_ceiling: Annotated[float, Field(gt=0)] | None = None
    """Money, in the currency of the prices, that the teacher's tables may cost, what earlier runs paid for their rows
    included: a request that may exceed it is not sent, and the run stops resumably."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the longest completion; reasoning models of OpenAI take only the second."""
    omit: list[Literal["temperature", "top_p", "seed"]] = []
    """Fields that are not sent, for models that refuse them: these then decode as they please."""
    reasoning_tags: tuple[str, str] | None = None
    """Where thinking begins and ends in the texts, for instance `["<think>", "</think>"]`: it is cut off, and a
    completion that never left it counts as truncated. Thinking in a field of its own needs nothing."""
    extra_body: dict[str, Any] = {}
    """Further fields of each request's body."""

    @field_validator("extra_body")
    @classmethod
    def _says_no_tokens(cls, body: dict[str, object]) -> dict[str, object]:
        if taken := _NOT_EXTRA & body.keys():
            raise ValueError(f"{sorted(taken)[0]} is said elsewhere, or would make a request cost more than is known")
        if keys := [name for name in body if _SECRET_FIELD.search(name)]:
            raise ValueError(
                f"{keys[0]!r} would be stored with each run. Fix: put the key into the variable that api_key_env names"
            )
        return body

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost, by the prices."""
        prompt, completion = self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6

    @model_validator(mode="after")
    def _ceiling_needs_prices(self) -> Self:
        prices = self.price_per_million_prompt_tokens + self.price_per_million_completion_tokens
        if self.spend_ceiling is not None and prices == 0:
            raise ValueError("spend_ceiling needs price_per_million_prompt_tokens and ..._completion_tokens")
        return self


class ScriptedOptions(Replicated):
    """A deterministic function in place of a model, for fault injection and scale tests; never a proof of quality."""

    type: Literal["scripted"]
    model: str = "scripted"
    revision: str | None = None
    latency_ms: Annotated[float, Field(ge=0)] = 0.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that one engine asks Ray for, and leaves alone: where engines are placed can be tried without models."""
    accelerator_type: str | None = None

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("Ray gives whole GPUs, or a fraction of one. Fix: write a whole number")
        return gpus

    max_in_flight: PositiveInt = 64
    fail_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of rows, by hash, whose first attempt fails."""
    truncate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of rows, by hash, that end with finish reason `length`."""
    verdict: Literal["right", "wrong"] = "wrong"
    die_on: str | None = None
    """The engine dies when a conversation with these words comes."""
    kill_on: str | None = None
    """... and its whole process."""
    hang_on: str | None = None
    """... and such a conversation is never answered."""
    refuse_on: str | None = None
    """A file with ids of Ray's nodes, one a line, on which no engine starts."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 1800.0


StudentEngine = Annotated[VllmOptions | ScriptedOptions, Field(discriminator="type")]
TeacherEngine = Annotated[TeacherVllm | TeacherOpenAI | ScriptedOptions, Field(discriminator="type")]


class StudentSection(Section):
    """The model that drafts and is then trained: the very same checkpoint."""

    model: ModelPlace
    """Hub id, directory or `s3://` prefix."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; a branch is resolved to its commit."""
    engine: StudentEngine = VllmOptions()


class TeacherSection(Section):
    """The model that criticises and refines."""

    engine: TeacherEngine
