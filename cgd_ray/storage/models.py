"""Models by name: who they are (for fingerprints), and how they come to a node."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock

from cgd_ray.config.run import StorageSection
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.runtime.state import cache_folder
from cgd_ray.storage.demo_models import DEMO_PREFIX, demo_identity, fetch
from cgd_ray.storage.filesystem import Store, open_filesystem

_WEIGHTS = ("*.safetensors",)
_IGNORED = ("*.gguf", "*.bin", "*.pth", "*.msgpack", "*.h5", "original/*", "onnx/*")


def model_identity(model: str, revision: str | None, storage: StorageSection, key: str) -> str:
    """What makes this model this model, whatever path it is reached by.

    A demo model is known by its file's sha256, a hub id by its commit, a directory and an `s3://` prefix by content.

    Raises:
        ConfigError: there is no such model; `key` is the recipe's key that names it.
    """
    if model.startswith(DEMO_PREFIX):
        return f"{model}@{_demo_digest(model, key)[:16]}"
    if model.startswith("s3://"):
        return f"s3@{_s3_digest(model, storage, key)}"
    if _is_path(model):
        return f"dir@{_directory_digest(_existing(model, key))}"
    return f"hf:{model}@{_commit(model, revision, key)}"


def pinned_revision(model: str, revision: str | None, key: str) -> str | None:
    """The commit of a hub id, so that all nodes load the same even while its branch moves; else `revision` itself.

    Raises:
        ConfigError: there is no such model; `key` is the recipe's key that names it.
    """
    if model.startswith((DEMO_PREFIX, "s3://")) or _is_path(model):
        return revision
    return _commit(model, revision, key)


def local_model(model: str, revision: str | None, storage: StorageSection, *, weights: bool = True) -> Path:
    """A directory on this node that holds the model, fetched if it is not there yet.

    Without `weights` it may lack them: configuration and tokenizer are there in any case.

    Raises:
        ConfigError: there is no such model.
    """
    if model.startswith(DEMO_PREFIX):
        return fetch(model.removeprefix(DEMO_PREFIX))
    if model.startswith("s3://"):
        return _from_s3(model, storage, weights=weights)
    if _is_path(model):
        return _existing(model, "model")
    from huggingface_hub import snapshot_download

    try:
        ignored = [*_IGNORED, *(() if weights else _WEIGHTS)]
        return Path(snapshot_download(model, revision=revision, ignore_patterns=ignored))
    except Exception as error:  # the hub client raises its own, httpx's and OS errors
        raise _no_such_hub_model(model, "model", error) from error


def _demo_digest(model: str, key: str) -> str:
    try:
        return demo_identity(model)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _is_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or Path(model).is_dir()


def _existing(model: str, key: str) -> Path:
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(f"{key}: {model} is not a directory with a model (config.json is missing)")
    return path


def _directory_digest(path: Path) -> str:
    """Hash of names and contents; remembered by size and modification time, since weights take minutes to read."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    stats = [[str(file.relative_to(path)), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]
    stamp = hashlib.sha256(json.dumps([str(path.resolve()), stats]).encode()).hexdigest()
    remembered = cache_folder("digests") / stamp
    if remembered.is_file():
        return remembered.read_text()
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    value = digest.hexdigest()[:16]
    temporary = remembered.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(value)
    temporary.replace(remembered)
    return value


def _s3_digest(model: str, storage: StorageSection, key: str) -> str:
    fs = open_filesystem(model, storage)
    base = model.removeprefix("s3://").rstrip("/")
    try:
        found = fs.find(base, detail=True)
    except OSError as error:
        raise ConfigError(f"{key}: {model} cannot be listed: {error}") from error
    if not any(name.endswith("/config.json") for name in found):
        raise ConfigError(f"{key}: {model} is not a prefix with a model (config.json is missing)")
    entries = sorted([name.removeprefix(base), info["size"], info.get("ETag")] for name, info in found.items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def _from_s3(model: str, storage: StorageSection, *, weights: bool) -> Path:
    whole = cache_folder("models") / f"s3-{_s3_digest(model, storage, 'model')}"
    target = whole if weights or whole.is_dir() else whole.with_name(f"{whole.name}-without-weights")
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            temporary = target.with_name(f"{target.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            Store(model, storage).download("", temporary, ignored=() if weights else _WEIGHTS)
            temporary.replace(target)
    return target


def _commit(model: str, revision: str | None, key: str) -> str:
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE:
        try:
            return str(HfApi().model_info(model, revision=revision, timeout=10).sha)
        except Exception as error:  # the hub client raises its own, httpx's and OS errors
            cached = try_to_load_from_cache(model, "config.json", revision=revision)
            if not isinstance(cached, str):
                raise _no_such_hub_model(model, key, error) from error
    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(cached, str):
        raise _no_such_hub_model(model, key, CgdError("HF_HUB_OFFLINE is set and it is not in the cache"))
    return Path(cached).parent.name  # .../snapshots/COMMIT/config.json


def _no_such_hub_model(model: str, key: str, error: Exception) -> ConfigError:
    why = " ".join(str(error).split())[:300]
    return ConfigError(f"{key}: {model} is no directory, and the hub does not give it: {why}")
