"""From the recipe's engine options to a chain that can be run."""

from collections.abc import Callable
from functools import partial

from cgd_ray.config.engine import ScriptedOptions, TeacherOpenAI, VllmOptions
from cgd_ray.config.run import StorageSection
from cgd_ray.execution.actor_pool import Chain
from cgd_ray.inference.base import Engine
from cgd_ray.inference.scripted import ScriptedEngine
from cgd_ray.inference.vllm.engine import VllmEngine
from cgd_ray.runtime.capacity import EngineOptions
from cgd_ray.runtime.cluster import Demand
from cgd_ray.stages.stage import Stage

MEMORY_ARGS = frozenset({
    "block_size", "cpu_offload_gb", "disable_log_stats", "enable_chunked_prefill", "enforce_eager",
    "gpu_memory_utilization", "kv_cache_memory_bytes", "long_prefill_token_threshold", "max_num_batched_tokens",
    "max_num_seqs", "max_parallel_loading_workers", "num_gpu_blocks_override",
})  # fmt: skip
"""Arguments of vLLM that say how much at a time and where it lies, like our own `max_in_flight`: the table stays."""


def build_chain(
    role: str,
    options: EngineOptions,
    model: tuple[str, str | None],
    stages: list[Stage],
    *,
    demand: Demand,
    storage: StorageSection,
    spent: float = 0.0,
) -> Chain:
    """A chain of stages on the engine that the recipe asks for.

    Args:
        role: student or teacher.
        options: of its engine.
        model: name and revision.
        stages: in the order in which rows walk them.
        demand: of one engine, see `engine_demand`.
        storage: when results are written.
        spent: money that was paid for results of these stages before.
    """
    make: Callable[[], Engine]
    match options:
        case VllmOptions():
            name, revision = model
            make = partial(VllmEngine, options, name, revision, storage, cpus=int(demand.cpus), gpus=demand.gpus)
        case TeacherOpenAI():
            from cgd_ray.inference.openai.engine import OpenAIEngine  # a second, which each reader of rows would pay

            make = partial(OpenAIEngine, options, spent)
        case ScriptedOptions():
            make = partial(ScriptedEngine, options)
    if isinstance(options, TeacherOpenAI):
        replicas, fewest, in_flight = 1, 1, options.concurrency
    else:
        replicas, fewest, in_flight = options.replicas, options.min_replicas, options.max_in_flight
    return Chain(
        role=role,
        make_engine=make,
        stages=stages,
        replicas=replicas,
        min_replicas=fewest,
        max_in_flight=in_flight,
        cpus=demand.cpus,
        gpus=demand.gpus,
        accelerator_type=demand.accelerator_type,
        flush_rows=storage.flush_rows,
        flush_seconds=storage.flush_seconds,
    )


def engine_identity(options: EngineOptions) -> dict[str, object]:
    """The engine options that change results; all else (replicas, parallelism, URL, ...) does not count."""
    keys: tuple[str, ...]
    match options:
        case VllmOptions():
            keys = ("dtype", "quantization", "max_model_len", "reasoning_parser", "engine_args")
        case TeacherOpenAI():
            keys = ("extra_body", *(key for key in ("omit", "reasoning_tags") if getattr(options, key)))
        case ScriptedOptions():
            keys = ("truncate_fraction", "verdict")  # a failure is no result
    identity = {key: getattr(options, key) for key in keys}
    if isinstance(options, VllmOptions):
        identity["engine_args"] = {key: value for key, value in options.engine_args.items() if key not in MEMORY_ARGS}
        if options.chat_template is not None:
            identity["chat_template"] = options.chat_template
    return identity
