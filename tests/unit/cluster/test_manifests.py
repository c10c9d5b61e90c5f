"""What the schemas cannot know: that the manifests agree with each other, with the code and with the documentation."""

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cgd_ray.config.recipe import Recipe, load_recipe
from cgd_ray.serving.options import ServeArgs, parse_args

from .conftest import REPOSITORY, Manifest

IMAGE_ROOT = "/app/"  # WORKDIR of cluster/Dockerfile
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DOCUMENT = (REPOSITORY / "docs/cluster.md").read_text()


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    (manifest,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return manifest


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in the tree."""
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from walk(child)
    elif isinstance(node, list):
        for child in node:
            yield from walk(child)


def pod_specs(manifests: list[Manifest]) -> list[dict[str, Any]]:
    return [node for node in walk(manifests) if "containers" in node]


def clusters(manifests: list[Manifest]) -> list[dict[str, Any]]:
    return [node for node in walk(manifests) if "headGroupSpec" in node]


def recipe_of(manifests: list[Manifest], folder: Path) -> Recipe:
    """The recipe that the job's entry point reads, from the ConfigMap that its head pod mounts."""
    job = of_kind(manifests, "RayJob")
    _, script, recipe, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (REPOSITORY / script.removeprefix(IMAGE_ROOT)).is_file()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    volume = next(volume for volume in head["volumes"] if volume.get("configMap"))
    config_map = of_kind(manifests, "ConfigMap")
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    directory, name = recipe.rsplit("/", 1)
    assert mounts[volume["name"]] == directory
    (folder / name).write_text(config_map["data"][name])
    return load_recipe(folder / name, overrides)


def serve_args(manifests: list[Manifest]) -> ServeArgs:
    (application,) = serve_config(manifests)["applications"]
    args = application["args"]
    # the directory is there on the cluster, not here
    model = args["model"] if args["model"].startswith("s3://") else f"s3://volume{args['model']}"
    return parse_args({**args, "model": model})


def serve_config(manifests: list[Manifest]) -> dict[str, Any]:
    config = of_kind(manifests, "RayService")["spec"]["serveConfigV2"]
    parsed: dict[str, Any] = yaml.safe_load(config)
    return parsed


def test_the_job_runs_the_cluster_that_was_written(manifests: list[Manifest]) -> None:
    assert of_kind(manifests, "RayJob")["spec"]["rayClusterSpec"] == of_kind(manifests, "RayCluster")["spec"]


def test_one_image_of_this_version(manifests: list[Manifest]) -> None:
    images = {container["image"] for spec in pod_specs(manifests) for container in spec["containers"]}
    (image,) = images
    target = image.rsplit("-", 1)[1]
    assert image.endswith(f"cgd-ray:{PYPROJECT['version']}-{target}")
    assert f" AS {target}\n" in (REPOSITORY / "cluster/Dockerfile").read_text()


def test_ray_version_is_the_locked_one(manifests: list[Manifest]) -> None:
    locked = next(d for d in PYPROJECT["dependencies"] if d.startswith("ray[")).split("==")[1]
    assert {cluster["rayVersion"] for cluster in clusters(manifests)} == {locked}


def test_the_recipe_loads_and_fits_the_workers(manifests: list[Manifest], tmp_path: Path) -> None:
    recipe = recipe_of(manifests, tmp_path)
    groups = of_kind(manifests, "RayCluster")["spec"]["workerGroupSpecs"]
    if not groups:
        assert recipe.run.root.startswith("/")
        return
    assert recipe.run.root.startswith("s3://")
    (group,) = groups
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = int(limits["nvidia.com/gpu"])
    engine = recipe.teacher.engine
    assert engine.type == "vllm"
    assert engine.tensor_parallel_size * engine.pipeline_parallel_size <= gpus  # one node holds the teacher
    assert recipe.training.workers <= gpus * group["maxReplicas"]


def test_the_service_builds_from_its_arguments(manifests: list[Manifest]) -> None:
    config = serve_config(manifests)
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}  # noqa: S104  pods are reached from outside
    (application,) = config["applications"]
    module, function = application["import_path"].split(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    assert function in {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    args = serve_args(manifests)
    groups = of_kind(manifests, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    if groups:
        limits = groups[0]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert args.gpus <= int(limits["nvidia.com/gpu"])
        assert args.cpus < int(limits["cpu"])
        assert args.max_replicas < groups[0]["maxReplicas"]


def test_the_service_serves_what_the_job_trains(manifests: list[Manifest], tmp_path: Path) -> None:
    recipe = recipe_of(manifests, tmp_path)
    (application,) = serve_config(manifests)["applications"]
    assert application["args"]["model"].startswith(f"{recipe.run.root}/runs/{recipe.run.name}/")
    assert serve_args(manifests).model_id == recipe.serving.model_id


def test_a_group_that_says_its_card_and_chooses_nodes_chooses_that_card(manifests: list[Manifest]) -> None:
    """An autoscaler of nodes else takes the cheapest one with a GPU, and Ray what the group said."""
    for group in (group for cluster in clusters(manifests) for group in cluster["workerGroupSpecs"]):
        chosen = group["template"]["spec"].get("nodeSelector", {})
        if "accelerator_type" in group["rayStartParams"].get("resources", "") and chosen:
            assert {"node.kubernetes.io/instance-type", "karpenter.k8s.aws/instance-gpu-name"} & chosen.keys()


def test_ray_pods_ask_for_what_they_may_use(manifests: list[Manifest]) -> None:
    for spec in pod_specs(manifests):
        for container in spec["containers"]:
            resources = container["resources"]
            assert resources["requests"] == resources["limits"]  # Ray counts the limits, Kubernetes the requests


def test_pods_have_no_rights_to_spare(manifests: list[Manifest]) -> None:
    for spec in pod_specs(manifests):
        assert spec["serviceAccountName"] == of_kind(manifests, "ServiceAccount")["metadata"]["name"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_cluster_asks_for_a_token(manifests: list[Manifest]) -> None:
    for cluster in clusters(manifests):
        assert cluster["authOptions"] == {"mode": "token", "secretName": "cgd-ray-auth"}


def test_the_network_policy_covers_every_pod(manifests: list[Manifest]) -> None:
    selector = of_kind(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    templates = [node for node in walk(manifests) if "containers" in node.get("spec", {})]
    assert len(templates) == len(pod_specs(manifests))
    for template in templates:
        assert selector.items() <= template["metadata"]["labels"].items()


def test_secrets_are_named_and_never_written(manifests: list[Manifest]) -> None:
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]
    named = {node["secretRef"]["name"] for node in walk(manifests) if "secretRef" in node}
    named |= {node["secretName"] for node in walk(manifests) if "secretName" in node}
    assert named == {"cgd-s3", "cgd-hub", "cgd-ray-auth", "cgd-serve-keys"}
    created = set(re.findall(r"kubectl create secret generic (\S+)", DOCUMENT))
    assert named == created


def test_the_service_finds_its_keys(manifests: list[Manifest]) -> None:
    file = Path(serve_args(manifests).keys_file or "")
    for spec in service_pods(manifests):
        [volume] = [one for one in spec["volumes"] if one.get("secret", {}).get("secretName") == "cgd-serve-keys"]
        mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
        assert mounts[volume["name"]]["mountPath"] == str(file.parent)
        assert mounts[volume["name"]]["readOnly"]
    assert f"--from-literal={file.name}=" in DOCUMENT


def service_pods(manifests: list[Manifest]) -> list[Any]:
    cluster = of_kind(manifests, "RayService")["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_claims_are_part_of_the_overlay(manifests: list[Manifest]) -> None:
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    used = {node["claimName"] for node in walk(manifests) if "claimName" in node}
    assert used == claims


def test_parts_can_be_applied_one_at_a_time(manifests: list[Manifest]) -> None:
    parts = {manifest["metadata"]["labels"]["app.kubernetes.io/component"] for manifest in manifests}
    assert parts == {"shared", "cluster", "job", "service"}
    for part in parts:
        assert f"app.kubernetes.io/component={part}" in DOCUMENT
