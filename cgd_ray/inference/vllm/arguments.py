"""The single mapping from an engine's options to vLLM's arguments: the evaluated model is the served model."""

from typing import Any

from cgd_ray.inference.vllm.options import VllmEngineOptions

_MEMORY_SHARE = 0.9  # of the GPU, or of an engine's fraction of it; the rest is for CUDA contexts and the allocator


def vllm_arguments(options: VllmEngineOptions, gpus: float) -> dict[str, Any]:
    """Return the arguments of vLLM's AsyncEngineArgs, without the model and the placement of its workers.

    Args:
        options: options of the engine.
        gpus: GPUs that Ray gave it, see `VllmEngineOptions.gpus`.
    """
    arguments: dict[str, Any] = {
        "dtype": options.compute_dtype(),
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "enforce_eager": gpus == 0 if options.enforce_eager is None else options.enforce_eager,
        "generation_config": "vllm",  # the model's own sampling defaults never apply
    }
    for name in ("quantization", "max_model_len"):
        if (value := getattr(options, name)) is not None:
            arguments[name] = value
    if 0 < gpus < 1:
        arguments["gpu_memory_utilization"] = round(_MEMORY_SHARE * gpus, 3)
    return arguments | options.engine_args


def cpu_environment(options: VllmEngineOptions, cores: list[int] | None) -> dict[str, str]:
    """Return the environment variables of an engine on CPU.

    Args:
        options: options of the engine.
        cores: cores to pin the workers' threads to, an equal share per worker; None pins none.
    """
    space = {"VLLM_CPU_KVCACHE_SPACE": str(max(1, round(options.kv_cache_gib)))}  # whole GiB
    if cores is None:
        return {**space, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if options.devices > 1:
        return {**space, "VLLM_CPU_OMP_THREADS_BIND": _shares(cores, options.devices)}
    # For the engine core process, which is the only worker.
    return {**space, "OMP_NUM_THREADS": str(len(cores)), "GOMP_CPU_AFFINITY": " ".join(map(str, cores))}


def _shares(cores: list[int], workers: int) -> str:
    """Format cores for vLLM: commas separate the cores of a worker, bars separate workers."""
    each = max(1, len(cores) // workers)
    starts = [rank * each % len(cores) for rank in range(workers)]
    return "|".join(",".join(map(str, cores[start : start + each])) for start in starts)
