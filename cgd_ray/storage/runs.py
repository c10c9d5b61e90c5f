"""One run's folder: `root/runs/NAME/` with config, manifests, training, student, scores and report."""

import json
from dataclasses import dataclass
from typing import Any

from cgd_ray.redaction import redact_tree
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint

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
        self.store.write(self.path(name), _as_json(content))

    def record(self, name: str, document: Document, settings: Document) -> Document:
        """Write what a phase came to under these settings; returns it as written.

        Where this invocation found all of it done, what it had cost under the same settings stays on record: tokens,
        seconds, execution.
        """
        earlier, recorded = self.read_json(name), document | {"settings": fingerprint(settings)}
        if earlier and earlier["settings"] == recorded["settings"]:
            recorded = _with_costs(recorded, earlier)
        self.write_json(name, recorded)
        return recorded

    def read_json(self, name: str) -> Document | None:
        """A JSON document of the run, or None where it is not there yet."""
        try:
            content: Document = json.loads(self.store.read(self.path(name)))
        except FileNotFoundError:
            return None
        return content


def _as_json(content: Document) -> bytes:
    return json.dumps(redact_tree(content), indent=1, ensure_ascii=False, default=str).encode()


def telling(config: Document) -> Document:
    """The sections that decide what a manifest says."""
    return {name: section for name, section in config.items() if name not in ("serving", "storage")}


_COSTS = ("spent", "execution", "seconds", "reused")


def _with_costs(new: Document, earlier: Document) -> Document:
    nested = {
        key: _with_costs(value, earlier[key])
        for key, value in new.items()
        if key not in _COSTS and isinstance(value, dict) and isinstance(earlier.get(key), dict)
    }
    idle = new.get("reused") is True or new.get("spent") == {}
    kept = {key: earlier[key] for key in _COSTS if idle and key in new and key in earlier}
    return {**new, **nested, **kept}
