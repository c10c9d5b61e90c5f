"""One run's folder: `root/runs/NAME/` with config, manifests, training, student, scores and report."""

import json
from dataclasses import dataclass
from typing import Any

from cgd_ray.redaction import redact_tree
from cgd_ray.storage.filesystem import Store

JsonDict = dict[str, Any]
"""A JSON document: manifests, scores, reports."""


@dataclass(frozen=True)
class Run:
    """The folder of one run of a root."""

    store: Store
    name: str

    def path(self, name: str) -> str:
        """A name in this run, relative to the root."""
        return f"runs/{self.name}/{name}"

    def write_json(self, name: str, content: JsonDict) -> None:
        """Write a JSON document of the run."""
        self.store.write(self.path(name), _as_json(content))

    def read_json(self, name: str) -> JsonDict | None:
        """A JSON document of the run, or None if it does not exist yet."""
        try:
            content: JsonDict = json.loads(self.store.read(self.path(name)))
        except FileNotFoundError:
            return None
        return content


def _as_json(content: JsonDict) -> bytes:
    return json.dumps(redact_tree(content), indent=1, ensure_ascii=False, default=str).encode()


def deciding_settings(config: JsonDict) -> JsonDict:
    """The sections of a recipe that decide the results of a run's phases."""
    return {name: section for name, section in config.items() if name not in ("serving", "storage")}
