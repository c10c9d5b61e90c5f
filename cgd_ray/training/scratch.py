"""Training files in a machine's temporary folder, and removal of those that killed processes left."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_ENCODED, _STUDENT = "cgd-encoded-", "cgd-student-"
_LEFTOVER_S = 24 * 3600.0
"""Seconds since the last write after which no process needs a file or folder. Ranks on other nodes may take twelve
hours to copy their rows, before any rank maps them; a student is uploaded within a day of its last write."""


def encoded_file(name: str) -> Path:
    """Return the path at which a node's ranks find a training's rows; `name` is random."""
    return Path(tempfile.gettempdir(), f"{_ENCODED}{name}.arrow")


@contextlib.contextmanager
def student_folder() -> Iterator[Path]:
    """Yield a temporary folder for a student before its upload; delete leftovers first."""
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=_STUDENT) as folder:
        yield Path(folder)


def remove_leftovers() -> None:
    """Delete leftovers of killed processes: gigabytes each."""
    for prefix in (_ENCODED, _STUDENT):
        for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # another user's, or already deleted
                newest = max(file.stat().st_mtime for file in (path, *path.rglob("*")))
                if time.time() - newest > _LEFTOVER_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
