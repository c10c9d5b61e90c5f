"""Models by name: their identity (for fingerprints), and their download to a node."""

import contextlib
import glob
import hashlib
import json
import os
import platform
from pathlib import Path

from cgd_ray.config.run import StorageSection
from cgd_ray.errors import ConfigError
from cgd_ray.models import s3
from cgd_ray.models.demo import DEMO_PREFIX, demo_identity, fetch
from cgd_ray.runtime.folders import cache_folder

_WEIGHTS = ("*.safetensors",)
_CONTENT = "content-"  # prefix of the revision of models that have none of their own
_FIRST_BYTES = 2**20
_IGNORED = ("*.gguf", "*.bin", "*.pth", "*.msgpack", "*.h5", "original/*", "onnx/*")


def model_identity(model: str, revision: str | None, storage: StorageSection, key: str) -> str:
    """Identity of a model, independent of its path.

    A demo model is identified by its file's sha256, a hub id by its commit, a directory and an `s3://` prefix by
    content.

    Raises:
        ConfigError: there is no such model; `key` is the recipe's key that names it.
    """
    if model.startswith(DEMO_PREFIX):
        return f"{model}@{_demo_digest(model, key)[:16]}"
    if model.startswith("s3://"):
        return f"s3@{s3.digest(model, storage, key)}"
    if _is_path(model):
        return f"dir@{_directory_digest(_existing(model, key))}"

    from cgd_ray.models import hub  # takes seconds, which models of other kinds save

    return f"hf:{model}@{hub.commit(model, revision, key)}"


def pinned_model(model: str, revision: str | None, storage: StorageSection, key: str) -> tuple[str, str | None]:
    """Name and revision that make all nodes load the same model, in any directory and after later changes.

    A hub id gets its commit, a directory its absolute path. The revision of a directory and of an `s3://` prefix is a
    digest of its content, which `local_model` checks.

    Raises:
        ConfigError: there is no such model; `key` is the recipe's key that names it.
    """
    if model.startswith(DEMO_PREFIX):
        return model, revision
    if model.startswith("s3://"):
        return model, _CONTENT + s3.digest(model, storage, key)
    if _is_path(model):
        folder = _existing(model, key).resolve()
        return str(folder), _CONTENT + _quick_digest(folder)
    from cgd_ray.models import hub

    return model, hub.commit(model, revision, key)


def local_model(model: str, revision: str | None, storage: StorageSection, *, weights: bool = True) -> Path:
    """A directory on this node that holds the model; fetches the model if it is missing.

    Without `weights` the directory may lack them, but it always has the configuration and tokenizer.

    Raises:
        ConfigError: there is no such model, or it differs from the pinned one.
    """
    return _without_pattern(_fetched(model, revision, storage, weights=weights))


def _without_pattern(folder: Path) -> Path:
    """The folder, or a link to it: vLLM searches weights with `glob`, which reads `[1]` in a path as a pattern."""
    if not glob.has_magic(str(folder)):
        return folder
    link = cache_folder("links") / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    if glob.has_magic(str(link)):
        raise ConfigError(f"{link.parent}: a cache with one of *?[ in its path. Fix: set CGD_CACHE_DIR to another one")
    with contextlib.suppress(FileExistsError):  # another engine made the link first
        link.symlink_to(folder.resolve(), target_is_directory=True)
    return link


def _fetched(model: str, revision: str | None, storage: StorageSection, *, weights: bool) -> Path:
    if model.startswith(DEMO_PREFIX):
        return fetch(model.removeprefix(DEMO_PREFIX))
    ignored = () if weights else _WEIGHTS
    if model.startswith("s3://"):
        content = s3.digest(model, storage, "model")
        _require(content, revision, f"{model} has changed since the command began")
        return s3.fetch(model, content, storage, ignored)
    if _is_path(model):
        folder = _existing(model, "model")
        if revision:
            _require(_quick_digest(folder), revision, f"{model} holds another model than where the command began")
        return folder
    from cgd_ray.models import hub

    return hub.fetch(model, revision, [*_IGNORED, *ignored])


def _require(content: str, revision: str | None, otherwise: str) -> None:
    if revision and revision.startswith(_CONTENT) and revision != _CONTENT + content:
        raise ConfigError(f"model on {platform.node()}: {otherwise}. Fix: bring the same one to every node")


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
        raise ConfigError(
            f"{key}: {model} is not a directory with a model on {platform.node()} (config.json is missing). Fix: put "
            "it at that path on every node"
        )
    return path


def _quick_digest(path: Path) -> str:
    """Hash of names, sizes and first bytes: all nodes compute it at loading, and whole weights take minutes."""
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(json.dumps([str(file.relative_to(path)), file.stat().st_size]).encode())
        with file.open("rb") as content:
            digest.update(content.read(_FIRST_BYTES))
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """Files of the model, without hidden files and folders, which record when and how it was downloaded."""
    inner = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(path / file for file in inner if not any(part.startswith(".") for part in file.parts))


def _directory_digest(path: Path) -> str:
    """Hash of names and contents; cached by size and modification time, since weights take minutes to read."""
    files = _files(path)
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
