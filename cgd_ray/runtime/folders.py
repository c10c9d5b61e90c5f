"""Folders of this user on this node: a cache to keep, and temporary state."""

import os
import tempfile
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of files to keep; created if missing.

    It is below `$CGD_CACHE_DIR`, else `$XDG_CACHE_HOME/cgd-ray`, else `~/.cache/cgd-ray`; without a home,
    below the system's temporary folder.
    """
    given = os.environ.get("CGD_CACHE_DIR")
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(given) if given else Path(xdg or _home() / ".cache") / "cgd-ray"
    return _made(base.absolute() / name)


def state_folder(name: str) -> Path:
    """A folder for this node's locks and process records, below the temporary folder; created if missing."""
    return _made(_temporary() / name)


def _home() -> Path:
    # Containers run as users without an entry in the password file, and some services set HOME to an empty string.
    if os.environ.get("HOME") == "":
        return _temporary()
    try:
        return Path.home()
    except RuntimeError:
        return _temporary()


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"cgd-ray-{os.getuid()}"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
