"""Training files in a machine's temporary folder, and removal of those that killed processes left."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_HOUR = 3600.0
_ENCODED, _STUDENT = "cgd-encoded-", "cgd-student-"
_OLDEST = {_ENCODED: _HOUR, _STUDENT: 24 * _HOUR}
"""Seconds since the last write after which no process needs the file or folder. Rows are mapped minutes after they are
written; a student is uploaded within a day."""


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
    for prefix, oldest in _OLDEST.items():
        for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # another user's, or already deleted
                if time.time() - path.stat().st_mtime > oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
