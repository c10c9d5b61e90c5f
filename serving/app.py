"""The Serve application.

    serve run serving.app:build model=/path/to/student cpus=2
    serve deploy serving/serve.yaml

Answers `/v1/chat/completions`, `/v1/completions` (both with streaming), `/v1/models` and `/tokenize`. Ask the
bare prompt x: no draft, no critique. Chat requests are rendered with the template of the exported tokenizer,
which is the one that training used.
"""

from typing import Any

from ray.serve import Application
from ray.serve.llm import LLMConfig, build_openai_app

from serving.options import ServeArgs, parse_args

# Ray Serve LLM may log prompts unless told otherwise.
_PRIVATE = {"RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0"}


def build(args: dict[str, Any]) -> Application:
    """Build the application from the arguments of `serve run`, a Serve config or `cgd serve`.

    Args:
        args: see `serving.options.ServeArgs`; values may be text.

    Raises:
        ConfigError: one line that names the argument and the mend.
    """
    options = parse_args(args)
    return build_openai_app(
        {
            "llm_configs": [llm_config(options)],
            "ingress_deployment_config": {
                # The ingress only passes requests on. On CPU it asks for no core, so that two are enough for it and
                # the student; on a GPU cluster it asks for one, which keeps it off the head, which has none.
                "ray_actor_options": {"num_cpus": 1 if options.gpu_count else 0, "runtime_env": {"env_vars": _PRIVATE}},
            },
        }
    )


def llm_config(options: ServeArgs) -> LLMConfig:
    """Ray Serve LLM's description of the model, its engine and its replicas."""
    return LLMConfig(
        model_loading_config={"model_id": options.model_id, "model_source": options.model},
        callback_config={
            "callback_class": "serving.fetch.FetchModel",
            "callback_kwargs": {
                "model": options.model,
                "revision": options.revision,
                "storage": options.storage.model_dump(),
            },
        },
        engine_kwargs=_engine_kwargs(options),
        accelerator_type=options.accelerator_type,
        accelerator_config={"kind": "gpu" if options.gpu_count else "cpu"},
        placement_group_config=_placement(options),
        runtime_env={"env_vars": _environment(options)},
        deployment_config=_deployment(options),
    )


def _engine_kwargs(options: ServeArgs) -> dict[str, Any]:
    kwargs: dict[str, Any] = {
        "dtype": options.dtype,
        # The model's own generation_config.json would otherwise set a temperature that nobody asked for.
        "generation_config": "vllm",
        "tensor_parallel_size": max(options.gpu_count, 1),
        # Compiling costs 75 s at the start on CPU.
        "enforce_eager": options.gpu_count == 0,
    }
    if options.max_model_len is not None:
        kwargs["max_model_len"] = options.max_model_len
    return kwargs


def _placement(options: ServeArgs) -> dict[str, Any]:
    """One bundle per GPU, or one for all threads; all on one node, which is the one with the local copy."""
    if options.gpu_count == 0:
        bundles = [{"CPU": options.cpus}]
    else:
        bundles = [{"GPU": 1, "CPU": options.cpus}, *({"GPU": 1} for _ in range(options.gpu_count - 1))]
    return {"bundles": bundles, "strategy": "STRICT_PACK"}


def _environment(options: ServeArgs) -> dict[str, str]:
    if options.gpu_count:
        return dict(_PRIVATE)
    return {
        **_PRIVATE,
        "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
        # Ray assigns a number of cores, not which ones: pinning would put all replicas of a node on the same.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(options.cpus),
    }


def _deployment(options: ServeArgs) -> dict[str, Any]:
    return {
        # The replica's cores are those of its bundle; by default Serve would add one.
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": options.max_ongoing_requests,
        "autoscaling_config": {
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_ongoing_requests,
        },
        # On few cores, a busy engine can keep the replica from answering within the default 10 s.
        "health_check_timeout_s": 60,
    }
