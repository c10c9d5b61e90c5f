"""One mapping of an engine's options: no field is lost on its way to vLLM or to Ray, in generation or in serving."""

from typing import Any

import pytest

from cgd_ray.config.engine import StudentSection
from cgd_ray.config.recipe import parse_recipe
from cgd_ray.errors import ConfigError
from cgd_ray.inference.vllm.arguments import cpu_environment, vllm_arguments
from cgd_ray.inference.vllm.options import VllmEngineOptions, VllmOptions
from cgd_ray.runtime.cluster import Cluster, Node
from cgd_ray.runtime.device import PRETEND_GPUS
from cgd_ray.serving.app import llm_config
from cgd_ray.serving.options import parse_args
from cgd_ray.serving.run import serve_args

NODE = Cluster((Node(8, 8),))
CHANGES: dict[str, Any] = {
    "dtype": "float16",
    "quantization": "fp8",
    "max_model_len": 512,
    "reasoning_parser": "qwen3",
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 3,
    "accelerator_type": "H100",
    "gpus_per_worker": 0.5,
    "cpus": 3,
    "kv_cache_gib": 5.0,
    "enforce_eager": True,
    "engine_args": {"kv_cache_dtype": "fp8"},
}
ON_CPU = {"kv_cache_gib": {"gpus_per_worker": 0}}  # what else must be set for a field to count


@pytest.fixture(autouse=True)
def _gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRETEND_GPUS, "1")


def test_every_field_is_changed_here() -> None:
    assert CHANGES.keys() == VllmEngineOptions.model_fields.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_reaches_the_engine_and_the_served_one(name: str) -> None:
    given = ON_CPU.get(name, {})
    plain, changed = (VllmOptions.model_validate({**given, **more}) for more in ({}, {name: CHANGES[name]}))
    # Beside the student's parser, which our engine applies itself, and the card, which is an option of the actor.
    if name not in {"reasoning_parser", "accelerator_type"}:
        assert generated(plain) != generated(changed)
    assert served(plain) != served(changed)


def generated(options: VllmOptions) -> object:
    gpus = options.gpus
    arguments = vllm_arguments(options, gpus)
    return arguments, cpu_environment(options, [0, 1]), options.demand(NODE, sharing=1, key="engine")


def served(options: VllmOptions) -> object:
    given = options.model_dump(include=set(VllmEngineOptions.model_fields))
    return llm_config(parse_args({"model": "org/name", **given})).model_dump()


def test_what_is_served_is_what_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgd_ray.serving.run.read_cluster", lambda: NODE)
    engine = VllmOptions.model_validate({**CHANGES, "gpus_per_worker": 1})
    tree: dict[str, Any] = {"run": {"name": "a", "root": "r"}, "data": {"type": "demo"}, "student": {"model": "org/s"}}
    recipe = parse_recipe({**tree, "teacher": {"engine": {"type": "scripted"}}}, "test")
    recipe = recipe.model_copy(update={"student": StudentSection(model="org/s", engine=engine)})
    args = parse_args(serve_args(recipe, "org/trained"))
    assert {name: getattr(args, name) for name in CHANGES} == CHANGES | {"gpus_per_worker": 1}
    assert vllm_arguments(args, args.gpus) == vllm_arguments(engine, engine.gpus)
    bundles = llm_config(args).placement_group_config["bundles"]  # type: ignore[index]
    assert sum(bundle["GPU"] for bundle in bundles) == 6


def test_gpus_of_a_replica_lie_on_one_node() -> None:
    asked = {"accelerator_type": "H100", "tensor_parallel_size": 2, "cpus": 8}
    engine = llm_config(parse_args({"model": "org/name", **asked})).get_engine_config()
    accelerator = {"GPU": 1, "accelerator_type:H100": 0.001}
    assert engine.placement_bundles == [{**accelerator, "CPU": 8}, accelerator]
    assert engine.placement_strategy == "STRICT_PACK"
    assert engine.tensor_parallel_degree == 2


@pytest.mark.parametrize(
    ("given", "demand"),
    [
        ({"gpus_per_worker": 0.5}, (1, 0.5)),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, (1, 8)),
        ({"gpus_per_worker": 0}, (8, 0)),
        ({"accelerator_type": "H100", "cpus": 4}, (4, 1)),
    ],
)
def test_demands_are_those_of_all_workers(given: dict[str, Any], demand: tuple[float, float]) -> None:
    found = VllmOptions.model_validate(given).demand(NODE, sharing=1, key="engine")
    assert (found.cpus, found.gpus) == demand


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpus_per_worker": 0.5, "tensor_parallel_size": 3}, "only an engine of one worker shares its GPU"),
        ({"gpus_per_worker": 2}, "less than or equal to 1"),
        ({"gpus_per_worker": 0, "accelerator_type": "H100"}, "with gpus_per_worker 0"),
        ({"engine_args": {"tensor_parallel_size": 8}}, "set tensor_parallel_size beside engine_args"),
        ({"engine_args": {"data_parallel_size": 8}}, "engines are multiplied with replicas"),
        ({"engine_args": {"data_parallel_rank": 1}}, "engines are multiplied with replicas"),
        ({"engine_args": {"device_ids": "0,1"}}, "Ray chooses the GPUs"),
        ({"gpus_per_worker": 0.5, "engine_args": {"gpu_memory_utilization": 0.9}}, "is of the whole GPU, of which"),
        ({"gpus_per_worker": 0.5, "engine_args": {"gpu_memory_utilization": "0.4"}}, "a number of at most 0.5"),
        ({"gpus_per_worker": 0.5, "engine_args": {"kv_cache_memory_bytes": 1}}, "no account of the GPU's other"),
        ({"engine_args": {"distributed_executor_backend": "ray"}}, "processes of one node"),
    ],
)
def test_demands_that_cannot_be_met_are_refused(given: dict[str, Any], message: str) -> None:
    tree = {"run": {"name": "a", "root": "r"}, "data": {"type": "demo"}, "teacher": {"engine": {"type": "scripted"}}}
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**tree, "student": {"model": "org/s", "engine": {"type": "vllm", **given}}}, "recipe.yaml")
    assert "recipe.yaml: student.engine" in str(caught.value)
    assert message in str(caught.value)


def test_arguments_that_vllm_has_not_are_named_before_anything_starts() -> None:
    tree: dict[str, Any] = {"run": {"name": "a", "root": "r"}, "data": {"type": "demo"}, "student": {"model": "org/s"}}
    for name, message in (
        ("max_num_seq", "no argument max_num_seq. Did you mean max_num_seqs"),
        ("swap_space_", "swap_"),
    ):
        engine = {"type": "vllm", "model": "org/t", "engine_args": {name: 1, "max_num_batched_tokens": 64}}
        with pytest.raises(ConfigError, match=f"teacher.engine.engine_args: the installed vLLM has .*{message}"):
            parse_recipe({**tree, "teacher": {"engine": engine}}, "test").teacher.engine.check("teacher.engine")


def test_an_engine_on_a_part_of_a_gpu_leaves_the_rest_alone() -> None:
    options = VllmOptions(gpus_per_worker=0.4)
    assert vllm_arguments(options, 0.4)["gpu_memory_utilization"] == pytest.approx(0.36)
    assert "gpu_memory_utilization" not in vllm_arguments(VllmOptions(), 1)
    own = VllmOptions(gpus_per_worker=0.4, engine_args={"gpu_memory_utilization": 0.2})
    assert vllm_arguments(own, 0.4)["gpu_memory_utilization"] == 0.2


def test_a_served_student_asks_for_no_more_than_its_part_of_a_gpu() -> None:
    config = llm_config(parse_args({"model": "org/name", "gpus_per_worker": 0.5}))
    assert config.placement_group_config == {"bundles": [{"GPU": 0.5, "CPU": 1.0}], "strategy": "STRICT_PACK"}
    assert config.runtime_env["env_vars"]["VLLM_RAY_PER_WORKER_GPUS"] == "0.5"  # type: ignore[index]


@pytest.mark.parametrize("card", ["A10", "L40", "GeForce-RTX-4090", "H100"])
def test_a_card_has_the_name_that_rays_nodes_give_it(card: str) -> None:
    served = llm_config(parse_args({"model": "org/name", "accelerator_type": card})).get_engine_config()
    found = VllmOptions(accelerator_type=card).demand(NODE, sharing=1, key="engine")
    assert served.placement_bundles[0].items() >= {f"accelerator_type:{card}": 0.001}.items()
    assert found.bundle().items() >= {f"accelerator_type:{card}": 0.001}.items()


def test_statistics_may_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    config = llm_config(parse_args({"model": "org/name", "engine_args": {"disable_log_stats": True}}))
    assert not config.log_engine_metrics


def test_workers_on_cpu_have_cores_of_their_own() -> None:
    two = VllmOptions(tensor_parallel_size=2, gpus_per_worker=0)
    assert cpu_environment(two, [4, 5, 6, 7])["VLLM_CPU_OMP_THREADS_BIND"] == "4,5|6,7"
    assert cpu_environment(VllmOptions(), [0, 1])["GOMP_CPU_AFFINITY"] == "0 1"
    assert cpu_environment(two, None)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_a_type_that_is_given_is_kept() -> None:
    assert VllmOptions(dtype="bfloat16").compute_dtype() == "bfloat16"
