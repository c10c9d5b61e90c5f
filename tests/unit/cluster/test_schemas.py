"""Every manifest is what KubeRay's and Kubernetes' schemas allow, and the check does catch mistakes."""

import copy
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from .conftest import KUBERNETES, KUSTOMIZATIONS, REPOSITORY, Manifest, render

Validators = dict[str, Draft202012Validator]
HEAD = ("spec", "headGroupSpec", "template", "spec")


def test_every_overlay_is_tested() -> None:
    folders = {path.parent for path in (REPOSITORY / "cluster").rglob("kustomization.yaml")}
    assert {str(folder.relative_to(REPOSITORY / "cluster")) for folder in folders} == set(KUSTOMIZATIONS)


def test_manifests_fit_their_schemas(manifests: list[Manifest], validators: Validators) -> None:
    kinds = [manifest["kind"] for manifest in manifests]
    assert {"RayCluster", "RayJob", "RayService", "ServiceAccount", "ConfigMap", "NetworkPolicy"} <= set(kinds)
    for manifest in manifests:
        if manifest["kind"] in validators:
            validators[manifest["kind"]].validate(manifest)
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "enableInTreeAutoscalin"), True),  # a typo in a field of KubeRay's
        (("spec", "authOptions", "mode"), "tokens"),  # a value that is not of the enumeration
        (("spec", "rayVersion"), 2.6),  # a YAML number where text is asked for
        ((*HEAD, "serviceAccount_name"), "cgd-ray"),  # a typo in a pod's field
        ((*HEAD, "containers", 0, "env"), [{"nam": "A", "value": "b"}]),
        (("spec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "autoscalerOptions", "resources", "limit"), {}),
    ],
)
def test_mistakes_are_caught(validators: Validators, path: tuple[str | int, ...], value: Any) -> None:
    manifest = next(m for m in render("base") if m["kind"] == "RayCluster")
    assert validators["RayCluster"].is_valid(manifest)
    broken = copy.deepcopy(manifest)
    node: Any = broken
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert not validators["RayCluster"].is_valid(broken)
