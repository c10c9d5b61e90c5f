"""One run's folder: `root/runs/NAME/` with config, manifests, training, student, scores and report."""

import json
from dataclasses import dataclass
from typing import Any

from cgd_ray.storage.filesystem import Store

Document = dict[str, Any]
"""A JSON document: manifests, scores, reports."""


@dataclass(frozen=True)
class Run:
    """The folder of one run of a root."""

    store: Store
    name: str

    def path(self, name: str) -> str:
        """A name in this run, relative to the root."""
        return f"runs/{self.name}/{name}"

    def write_json(self, name: str, content: Document) -> None:
        """Put a JSON document into the run."""
        self.store.write(self.path(name), json.dumps(content, indent=1, ensure_ascii=False, default=str).encode())

    def begin(self, config: Document) -> bool:
        """Write the run's configuration; returns whether it differs from that of an earlier invocation.

        Where it differs, the earlier manifest and report no longer tell of what the folder will hold: they go.
        """
        before = self.read_json("config.json")
        changed = before is not None and _telling(before) != _telling(config)
        if changed:
            for name in ("manifest.json", "report.md"):
                self.store.remove(self.path(name))
        self.write_json("config.json", config)
        return changed

    def read_json(self, name: str) -> Document | None:
        """A JSON document of the run, or None where it is not there yet."""
        try:
            content: Document = json.loads(self.store.read(self.path(name)))
        except FileNotFoundError:
            return None
        return content


def _telling(config: Document) -> Document:
    """The sections that decide what a report says."""
    return {name: section for name, section in config.items() if name not in ("serving", "storage")}
