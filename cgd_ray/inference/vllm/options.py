"""Options of a vLLM engine on our own devices."""

import difflib
import math
from dataclasses import fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from cgd_ray.config.base import Section
from cgd_ray.config.places import ModelPlace
from cgd_ray.errors import ConfigError
from cgd_ray.inference.options import ModelRef, PositiveInt, Replicated
from cgd_ray.runtime.demand import Demand
from cgd_ray.runtime.device import asks_for_gpus, fastest_type, require_engine_packages

if TYPE_CHECKING:
    from cgd_ray.config.run import StorageSection
    from cgd_ray.inference.base import Engine
    from cgd_ray.runtime.cluster import Cluster

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
"""vLLM arguments that an engine sets itself, and what to set instead."""


MEMORY_ARGS = frozenset({
    "block_size", "cpu_offload_gb", "disable_log_stats", "enable_chunked_prefill", "enforce_eager",
    "gpu_memory_utilization", "kv_cache_memory_bytes", "long_prefill_token_threshold", "max_num_batched_tokens",
    "max_num_seqs", "max_parallel_loading_workers", "num_gpu_blocks_override",
})  # fmt: skip
"""vLLM arguments that set only batch sizes and memory use, like our own `max_in_flight`; they keep the table."""


class VllmEngineOptions(Section):
    """One vLLM engine, for all uses: drafts, critiques, refinements, evaluation, and the served student."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Compute type. `auto`: bfloat16 on GPUs and on CPUs that multiply it natively (AVX512-BF16, AMX), else float32."""
    quantization: str | None = None
    max_model_len: PositiveInt | None = None
    """Maximum tokens of prompt plus completion; null uses the model's own limit."""
    reasoning_parser: str | None = None
    """Name of vLLM's reasoning parser. Thinking is removed; a completion that ends while thinking is truncated."""

    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    accelerator_type: str | None = None
    """Ray accelerator type, for instance `H100`; null allows any node."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | None = None
    """GPUs of each of the TP x PP workers: 1, a fraction of one (only with a single worker), or 0 for CPU. Null means 1
    if the installed packages compute on GPUs (`make setup DEVICE=gpu`), else 0."""
    cpus: PositiveInt | None = None
    """CPU cores of one engine; on CPU, also its number of threads. Null means 1 with GPUs. On CPU, it means all cores
    of the node, or an equal share if several engines run at once."""
    kv_cache_gib: Annotated[float, Field(gt=0)] = 2.0
    """Key-value cache of an engine on CPU, in GiB. On GPU, vLLM fills the remaining memory."""
    enforce_eager: bool | None = None
    """Skip compilation. Null means eager on CPU (saves 75 s at the start) and compiled on GPU."""
    engine_args: dict[str, Any] = {}
    """Any other argument of vLLM's AsyncEngineArgs. A changed value makes a new table, except for arguments that set
    only batch sizes and memory use (`gpu_memory_utilization`, `max_num_batched_tokens`, ...)."""

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
            raise ValueError(
                f"accelerator_type {self.accelerator_type} with gpus_per_worker 0. Fix: leave one of them out"
            )
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
        """Number of workers of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def gpus(self) -> float:
        """GPUs that one engine requests from Ray, for all its workers."""
        share = self.gpus_per_worker
        return (float(asks_for_gpus()) if share is None else share) * self.devices

    def compute_dtype(self) -> str:
        """Return the type of the weights in the engine; see `fastest_type` for `auto`."""
        if self.dtype != "auto":
            return self.dtype
        return fastest_type(self.gpus_per_worker, self.accelerator_type)

    def demand(self, cluster: "Cluster", *, sharing: int, key: str) -> Demand:
        """Return its GPUs in one actor (tensor and pipeline parallel on one node), else a share of a node's cores.

        Without `cpus`, engines that run at once get equal shares.

        Raises:
            ConfigError: GPUs with packages that compute on CPU, no GPU with packages that need one, or CPU packages on
                a cluster with GPUs.
        """
        if self.gpus_per_worker is None:
            from cgd_ray.runtime.capacity import require_same_packages  # imports Ray, not needed to read a recipe

            require_same_packages(key, cluster.gpus)
        gpus = self.gpus
        require_engine_packages(f"{key}.gpus_per_worker", gpus)
        if gpus:
            return Demand(self.cpus or 1, gpus, self.accelerator_type)
        return Demand(cpus=self.cpus or max(1, math.floor(cluster.largest_node_cpus / sharing)), gpus=0)


class VllmOptions(VllmEngineOptions, Replicated):
    """A Ray Data pool of actors, each with one vLLM AsyncLLM."""

    has_weights: ClassVar[bool] = True

    type: Literal["vllm"] = "vllm"
    chat_template: str | None = None
    """Chat template (Jinja) or the path of its file, for a model without one. A student is also trained, exported and
    served with it. Null uses the model's own template."""
    start_timeout_s: PositiveInt = 1800
    """Maximum seconds to load the model."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Maximum seconds for one completion. After that the row counts as failed, and the next run retries it."""

    def identity(self) -> dict[str, object]:
        """Return the options that change results."""
        keys = ("dtype", "quantization", "max_model_len", "reasoning_parser")
        arguments = {key: value for key, value in self.engine_args.items() if key not in MEMORY_ARGS}
        template = {"chat_template": self.chat_template} if self.chat_template is not None else {}
        return {**{key: getattr(self, key) for key in keys}, "engine_args": arguments, **template}

    def model_identity(self, model: ModelRef, storage: "StorageSection", key: str) -> str:
        """See `cgd_ray.models.resolve.model_identity`."""
        from cgd_ray.models.resolve import model_identity

        return model_identity(model.name, model.revision, storage, key)

    def make_engine(self, model: ModelRef, storage: "StorageSection", demand: "Demand", spent: float) -> "Engine":
        """Create a `VllmEngine`, which costs no money."""
        from cgd_ray.inference.vllm.engine import VllmEngine

        del spent
        return VllmEngine(self, model.name, model.revision, storage, cpus=int(demand.cpus), gpus=demand.gpus)

    def check(self, key: str) -> None:
        """Reject arguments that the installed vLLM does not have: a teacher would reject them only after all drafts.

        Raises:
            ConfigError: there is such an argument.
        """
        if not self.engine_args or find_spec("vllm") is None:
            return
        from vllm.engine.arg_utils import AsyncEngineArgs  # takes ten seconds; only recipes with arguments need it

        known = {field.name for field in fields(AsyncEngineArgs)}
        for name in self.engine_args.keys() - known:
            like = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {like[0]}?" if like else ""
            raise ConfigError(f"{key}.engine_args: the installed vLLM has no argument {name}.{meant}")

    def pinned(self, key: str, dtype: str | None) -> Self:
        """Return the options with the chat template's text in place of its file, and a type in place of `auto`."""
        from cgd_ray.prompts.chat import template_text

        text = template_text(self.chat_template, f"{key}.chat_template")
        return self.typed(dtype).model_copy(update={"chat_template": text})

    def typed(self, dtype: str | None) -> Self:
        """Return the options with a type in place of `auto`: `dtype`, else the fastest."""
        found = self.dtype if self.dtype != "auto" else dtype or self.compute_dtype()
        return self.model_copy(update={"dtype": found})


class VllmTeacherOptions(VllmOptions):
    """The teacher on our own devices."""

    model: ModelPlace
    """Hub id, directory or `s3://` prefix."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; a branch is resolved to its commit."""
