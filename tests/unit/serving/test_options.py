"""Arguments of `serving.app:build`: text as `serve run` passes it, one-line errors, agreement with the recipe."""

from pathlib import Path
from typing import Any

import pytest

from cgd_ray.config.training import ServingSection
from cgd_ray.errors import ConfigError
from cgd_ray.serving.options import ServeArgs, parse_args


def test_text_becomes_numbers() -> None:
    args = parse_args({"model": "s3://bucket/student", "cpus": "2", "max_replicas": "3", "anonymous": "true"})
    assert (args.cpus, args.max_replicas, args.anonymous) == (2, 3, True)


def test_none_takes_the_default_of_the_model() -> None:
    args = parse_args({"model": "org/name", "max_model_len": None, "accelerator_type": None})
    assert (args.max_model_len, args.gpus) == (None, 0)


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({}, 0),
        ({"gpus_per_worker": "0"}, 0),
        ({"gpus_per_worker": 0.5}, 0.5),
        ({"gpus_per_worker": 1, "tensor_parallel_size": 2, "pipeline_parallel_size": "3"}, 6),
    ],
)
def test_gpus_are_those_of_all_workers(given: dict[str, Any], gpus: float) -> None:
    assert parse_args({"model": "org/name", **given}).gpus == gpus


def test_a_relative_directory_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_args({"model": "runs/student"}).model == str((tmp_path / "runs" / "student").resolve())


@pytest.mark.parametrize("model", ["s3://bucket/root/runs/a/student", "org/name", "demo:smollm2-135m"])
def test_other_models_stay_as_they_are(model: str) -> None:
    assert parse_args({"model": model}).model == model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "argument model is missing"),
        ({"modle": "x"}, "argument model is missing"),
        ({"model": "org/name", "replicas": 2}, "unknown argument replicas; known are dtype, quantization"),
        ({"model": "/no/such/student"}, "model=/no/such/student: no such directory"),
        ({"model": "org/name", "model_id": "a:b"}, "model_id=a:b"),
        ({"model": "org/name", "cpus": "many"}, "cpus=many"),
        ({"model": "org/name", "min_replicas": 3, "max_replicas": 2}, "max_replicas 2 is below min_replicas 3"),
        ({"model": "org/name", "accelerator_type": "H100", "gpus_per_worker": 0}, "H100 with gpus_per_worker 0"),
        ({"model": "org/name", "gpus_per_worker": 2}, "gpus_per_worker=2"),
        ({"model": "org/name", "engine_args": "{"}, "engine_args={"),
        ({"model": "org/name", "engine_args": '{"tensor_parallel_size": 8}'}, "set tensor_parallel_size beside"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_args(given)
    assert str(caught.value).startswith("serving: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_are_those_of_the_recipe() -> None:
    recipe = ServingSection().model_dump()
    args = parse_args({"model": "org/name"}).model_dump()
    shared = recipe.keys() & args.keys()
    assert shared >= {"model_id", "min_replicas", "max_replicas", "target_ongoing_requests", "max_model_len"}
    assert {key: args[key] for key in shared} == {key: recipe[key] for key in shared}


def test_every_argument_is_described() -> None:
    properties = ServeArgs.model_json_schema()["properties"]
    parallel = {"tensor_parallel_size", "pipeline_parallel_size"}
    plain = {"min_replicas", "max_replicas", "quantization", "region"} | parallel
    assert {name for name, field in properties.items() if "description" not in field} == plain
