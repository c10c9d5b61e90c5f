"""Models by name: who they are (for fingerprints), and how they come to a node."""

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
_CONTENT = "content-"  # begins the revision of what has none by itself
_FIRST_BYTES = 2**20
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
        return f"s3@{s3.digest(model, storage, key)}"
    if _is_path(model):
        return f"dir@{_directory_digest(_existing(model, key))}"

    from cgd_ray.models import hub  # seconds that models of other kinds do not cost

    return f"hf:{model}@{hub.commit(model, revision, key)}"


def pinned_model(model: str, revision: str | None, storage: StorageSection, key: str) -> tuple[str, str | None]:
    """Name and revision by which all nodes load the same, whatever changes meanwhile and wherever they work.

    A hub id gets the commit, a directory its whole path; the revision of a directory and of an `s3://` prefix is a
    digest of what they hold, which `local_model` looks at.

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
    """A directory on this node that holds the model, fetched if it is not there yet.

    Without `weights` it may lack them: configuration and tokenizer are there in any case.

    Raises:
        ConfigError: there is no such model, or not the one that was pinned.
    """
    return _without_pattern(_fetched(model, revision, storage, weights=weights))


def _without_pattern(folder: Path) -> Path:
    """The folder, or a link to it: vLLM looks for weights with `glob`, which reads `[1]` in a path as a pattern."""
    if not glob.has_magic(str(folder)):
        return folder
    link = cache_folder("links") / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    if glob.has_magic(str(link)):
        raise ConfigError(f"{link.parent}: a cache with one of *?[ in its path. Fix: set CGD_CACHE_DIR to another one")
    with contextlib.suppress(FileExistsError):  # of another engine
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
    """Hash of names, sizes and first bytes: all nodes take it when they load, and whole weights take minutes."""
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(json.dumps([str(file.relative_to(path)), file.stat().st_size]).encode())
        with file.open("rb") as content:
            digest.update(content.read(_FIRST_BYTES))
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """Of the model: hidden ones, also in hidden folders, say when and how it came."""
    inner = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(path / file for file in inner if not any(part.startswith(".") for part in file.parts))


def _directory_digest(path: Path) -> str:
    """Hash of names and contents; remembered by size and modification time, since weights take minutes to read."""
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
