"""What looks like a mistyped URL is refused: it would become a local folder of that name."""

import pytest

from cgd_ray.config.recipe import parse_recipe
from cgd_ray.config.run import StorageSection
from cgd_ray.errors import ConfigError
from cgd_ray.storage.filesystem import open_filesystem
from tests.unit.config.test_recipe import MINIMAL

MISTYPED = [
    "s3:/bucket/x", "s3:bucket/x", "s3//bucket/x", "s3;//bucket/x", "S3://bucket/x", "s3:///bucket", "s3://", " s3://b",
    "s3a://bucket/x", "gs://bucket/x", "hdfs://host/x", "file:///tmp/x", "file:/tmp/x", "https://host/x", "http:/host",
    "/s3:/bucket/x", "/tmp/s3://bucket/x", "'s3://bucket/x'", "s3:\\\\bucket", "abfs:/x", "s3.//bucket",
]  # fmt: skip
PLACES = [
    "/tmp/x", "x", "./s3:/x", "../a:b", "~/x", "s3", "s3/x", "s3-backup/x", "/data/a:b/c", "s3://bucket", "s3://b/a:b//c",
    "data [1]/*.jsonl", "a;b", "C/x", "s3_old//x",
]  # fmt: skip


@pytest.mark.parametrize("place", MISTYPED)
def test_a_mistyped_url_is_refused_by_the_name_of_its_key(place: str) -> None:
    for key, change in {
        "run.root": {"run": {"name": "r", "root": place}},
        "data.path": {"data": {"type": "jsonl", "path": place}},
        "student.model": {"student": {"model": place}},
    }.items():
        with pytest.raises(ConfigError, match=rf"^recipe.yaml: {key}: only local paths and s3://BUCKET/PREFIX"):
            parse_recipe({**MINIMAL, **change}, "recipe.yaml")


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_taken(place: str) -> None:
    recipe = parse_recipe({**MINIMAL, "run": {"name": "r", "root": place}, "student": {"model": place}}, "recipe.yaml")
    assert (recipe.run.root, recipe.student.model) == (place, place)


@pytest.mark.parametrize("model", ["demo:smollm2-135m", "org/name", "name", "s3://bucket/model", "/models/x"])
def test_a_model_is_taken(model: str) -> None:
    assert parse_recipe({**MINIMAL, "student": {"model": model}}, "recipe.yaml").student.model == model


def test_no_file_system_is_opened_for_a_mistyped_url() -> None:
    with pytest.raises(ConfigError, match=r"^s3:/bucket/x: only local paths"):
        open_filesystem("s3:/bucket/x", StorageSection())
