"""Reduce KubeRay's CRDs to what the tests need: `python reduce.py CRD_FOLDER`, writes one JSON schema per kind.

Kept: every field of KubeRay's own, with types, enumerations and required keys. Made strict: objects with known fields
refuse others, as `kubectl apply --validate=strict` does. Replaced by references to Kubernetes' own definitions, which
the package kubernetes-validate carries: pod templates, services, environment variables and their like (they are what
makes the CRDs megabytes). Left out: descriptions, status, and the rules in CEL (`x-kubernetes-validations`).
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KINDS = ("raycluster", "rayjob", "rayservice")
DEFINITIONS = "https://kubernetes.io/api/_definitions.json#/$defs"

KUBERNETES_TYPES = {
    "env": ("array", "io.k8s.api.core.v1.EnvVar"),
    "envFrom": ("array", "io.k8s.api.core.v1.EnvFromSource"),
    "from": ("array", "io.k8s.api.networking.v1.NetworkPolicyPeer"),
    "headService": ("object", "io.k8s.api.core.v1.Service"),
    "metadata": ("object", "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
    "ports": ("array", "io.k8s.api.networking.v1.NetworkPolicyPort"),
    "securityContext": ("object", "io.k8s.api.core.v1.SecurityContext"),
    "serveService": ("object", "io.k8s.api.core.v1.Service"),
    "submitterPodTemplate": ("object", "io.k8s.api.core.v1.PodTemplateSpec"),
    "template": ("object", "io.k8s.api.core.v1.PodTemplateSpec"),
    "to": ("array", "io.k8s.api.networking.v1.NetworkPolicyPeer"),
    "valueFrom": ("object", "io.k8s.api.core.v1.EnvVarSource"),
    "volumeMounts": ("array", "io.k8s.api.core.v1.VolumeMount"),
}
KEPT = ("type", "enum", "required", "minimum", "maximum", "minLength", "maxLength", "pattern", "anyOf")


def main(folder: Path) -> None:
    """Write the reduced schema of each kind beside this file."""
    for kind in KINDS:
        crd = yaml.safe_load((folder / f"ray.io_{kind}s.yaml").read_text())
        version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
        schema = reduced(version["schema"]["openAPIV3Schema"])
        schema["properties"].pop("status")
        # The API server checks these two before it looks at the schema.
        schema["properties"]["apiVersion"] = {"const": "ray.io/v1"}
        schema["properties"]["kind"] = {"const": crd["spec"]["names"]["kind"]}
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        target = Path(__file__).with_name(f"{kind}.json")
        target.write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


def reduced(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without prose, strict, and with references in place of Kubernetes' own types."""
    result = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        result["properties"] = {name: field(name, child) for name, child in schema["properties"].items()}
        result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = reduced(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = reduced(schema["items"])
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
        result.pop("anyOf", None)
        result.pop("pattern", None)
    return result


def field(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of one field of an object."""
    if name == "resources" and "limits" in schema.get("properties", {}):
        return {"$ref": f"{DEFINITIONS}/io.k8s.api.core.v1.ResourceRequirements"}
    if name in KUBERNETES_TYPES:
        shape, definition = KUBERNETES_TYPES[name]
        reference = {"$ref": f"{DEFINITIONS}/{definition}"}
        return reference if shape == "object" else {"type": "array", "items": reference}
    return reduced(schema)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
