"""The Serve application.

    serve run serving.app:build model=/path/to/student cpus=2 keys_file=FILE
    serve deploy serving/serve.yaml

Serves `/v1/chat/completions`, `/v1/completions` (both with streaming) and `/v1/models` to clients with a key from
FILE. Send the bare prompt x: no draft, no critique. Chat requests are rendered with the template of the exported
tokenizer, which is the one that training used.
"""

from typing import Any

from ray.serve import Application
from ray.serve.llm import LLMConfig, build_openai_app

from cgd_ray.errors import ConfigError
from cgd_ray.inference.vllm.arguments import cpu_environment, vllm_arguments
from cgd_ray.runtime.demand import Demand
from cgd_ray.runtime.device import require_engine_packages
from cgd_ray.serving.options import ServeArgs, parse_args

# Ray Serve LLM may log prompts unless this is 0.
_PRIVATE = {"RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0"}

_BACKPRESSURE = {"status_code": 429, "retry_after_s": 5.0}
_MOST_WAITING = 1000  # requests for the ingress itself


def build(args: dict[str, Any]) -> Application:
    """Build the application from the arguments of `serve run`, a Serve config or `cgd serve`.

    Args:
        args: see `cgd_ray.serving.options.ServeArgs`; values may be text.

    Raises:
        ConfigError: one line that names the argument and the fix.
    """
    options = parse_args(args)
    if not options.has_keys and not options.no_key:
        raise ConfigError(
            "serving: nobody has a key. Fix: pass keys_file=FILE (one key a line, on every node that runs the "
            "ingress), or no_key=true where this machine alone is to ask"
        )
    ingress_cpus = 1 if options.gpus else 0
    return build_openai_app(
        {
            "llm_configs": [llm_config(options)],
            "ingress_cls_config": {
                "ingress_cls": "cgd_ray.serving.ingress:ClosedIngress",
                "ingress_extra_kwargs": {
                    "access": options.access.model_dump(),
                    "most_answers": options.max_ongoing_requests,
                },
            },
            "ingress_deployment_config": {
                "graceful_shutdown_timeout_s": options.drain_timeout_s,  # answers pass through it to their end
                # For an ingress that hangs: far above the student's own limit, whose refusals have OpenAI's format.
                "max_ongoing_requests": 8 * (options.max_replicas * options.max_ongoing_requests + _MOST_WAITING),
                "max_queued_requests": _MOST_WAITING,
                "backpressure_config": _BACKPRESSURE,
                # The ingress only forwards requests. On CPU it reserves no core, so that two suffice for it and the
                # student. On a GPU cluster it reserves one, which keeps it off the head node, which has none.
                "ray_actor_options": {
                    "num_cpus": ingress_cpus,
                    "runtime_env": {"env_vars": _PRIVATE},
                },
            },
        }
    )


def llm_config(options: ServeArgs) -> LLMConfig:
    """Return Ray Serve LLM's configuration of the model, its engine and its replicas.

    Raises:
        ConfigError: the installed packages compute on the other device.
    """
    gpus = options.gpus
    require_engine_packages("serving: gpus_per_worker", gpus)
    return LLMConfig(
        model_loading_config={"model_id": options.model_id, "model_source": options.model},
        callback_config={
            "callback_class": "cgd_ray.serving.model_callback.FetchModel",
            "callback_kwargs": {
                "model": options.model,
                "revision": options.revision,
                "storage": options.storage.model_dump(),
            },
        },
        engine_kwargs=_engine_kwargs(options, gpus),
        accelerator_config={"kind": "gpu" if gpus else "cpu"},
        placement_group_config=placement(options, gpus),
        runtime_env={"env_vars": _environment(options, gpus)},
        # Engine metrics need vLLM's own statistics.
        log_engine_metrics=not options.engine_args.get("disable_log_stats", False),
        deployment_config=_deployment(options),
    )


def _engine_kwargs(options: ServeArgs, gpus: float) -> dict[str, Any]:
    kwargs = vllm_arguments(options, gpus)
    # The reply's `reasoning_content` then holds the thinking, and `content` the evaluated text.
    return kwargs | ({"reasoning_parser": options.reasoning_parser} if options.reasoning_parser else {})


def placement(options: ServeArgs, gpus: float) -> dict[str, Any]:
    """Return Ray's bundles of a replica: one per worker, all on one node, the one with the local copy.

    They name the card as Ray's nodes do; `LLMConfig.accelerator_type` supports only some cards, and treats an A10 as
    an A10G.

    Args:
        options: of the replica.
        gpus: of all its workers, see `ServeArgs.gpus`.
    """
    if gpus == 0:
        bundles = [{"CPU": float(cores(options))}]
    else:
        worker = Demand(0, gpus / options.devices, options.accelerator_type).bundle()
        bundles = [worker | {"CPU": float(cores(options))}, *(worker for _ in range(options.devices - 1))]
    return {"bundles": bundles, "strategy": "STRICT_PACK"}


def cores(options: ServeArgs) -> int:
    """Return the number of CPU cores that a replica reserves."""
    return options.cpus or 1


def _environment(options: ServeArgs, gpus: float) -> dict[str, str]:
    if 0 < gpus < 1:  # vLLM's worker would ask for a whole GPU within the bundle
        return {**_PRIVATE, "VLLM_RAY_PER_WORKER_GPUS": f"{gpus:g}"}
    if gpus:
        return dict(_PRIVATE)
    # Ray assigns a number of cores, not specific ones: pinning would put all replicas of a node on the same cores.
    return {**_PRIVATE, **cpu_environment(options, cores=None), "OMP_NUM_THREADS": str(cores(options))}


def _deployment(options: ServeArgs) -> dict[str, Any]:
    return {
        # The replica's cores are those of its bundle; by default Serve would add one.
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": options.max_ongoing_requests,
        "max_queued_requests": options.max_queued_requests,
        "backpressure_config": _BACKPRESSURE,
        "graceful_shutdown_timeout_s": options.drain_timeout_s,
        "autoscaling_config": {
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_ongoing_requests,
        },
        # On few cores, a busy engine can keep the replica from answering within the default 10 s.
        "health_check_timeout_s": 60,
    }
