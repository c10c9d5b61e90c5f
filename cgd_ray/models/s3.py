"""Models under an `s3://` prefix: compute their digests, and fetch them to a node."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from cgd_ray.config.run import StorageSection
from cgd_ray.errors import ConfigError
from cgd_ray.runtime.folders import cache_folder
from cgd_ray.storage.filesystem import Store, open_filesystem


def digest(model: str, storage: StorageSection, key: str) -> str:
    """Digest of the names, sizes and entity tags under the prefix.

    Raises:
        ConfigError: there is no model; `key` is the recipe's key that names it.
    """
    fs = open_filesystem(model, storage)
    base = model.removeprefix("s3://").rstrip("/")
    fs.invalidate_cache(base)
    try:
        found = fs.find(base, detail=True)
    except OSError as error:
        raise ConfigError(f"{key}: {model} cannot be listed: {error}") from error
    if not any(name.endswith("/config.json") for name in found):
        raise ConfigError(f"{key}: {model} is not a prefix with a model (config.json is missing)")
    entries = sorted([name.removeprefix(base), info["size"], info.get("ETag")] for name, info in found.items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def fetch(model: str, content: str, storage: StorageSection, ignored: Sequence[str]) -> Path:
    """Fetch the model and return its directory in this node's cache; continues an interrupted download.

    Args:
        model: an `s3://` prefix.
        content: its digest.
        storage: settings of the S3 connection.
        ignored: patterns of the files that are not needed.
    """
    whole = cache_folder("models") / f"s3-{content}"
    target = whole if not ignored or whole.is_dir() else whole.with_name(f"{whole.name}-without-weights")
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            temporary = target.with_name(f"{target.name}.tmp")
            Store(model, storage).download("", temporary, ignored=ignored)
            temporary.replace(target)
    return target
