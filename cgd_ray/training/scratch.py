"""What training keeps for a while in a machine's temporary folder, without what kills left there."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_HOUR = 3600.0
_ENCODED, _STUDENT = "cgd-encoded-", "cgd-student-"
_OLDEST = {_ENCODED: _HOUR, _STUDENT: 24 * _HOUR}
"""Seconds since the last write into it, after which no process can need it: rows are mapped minutes after they were
written, a student is uploaded."""


def encoded_file(name: str) -> Path:
    """Where a node's ranks find the rows of a training with a random name."""
    return Path(tempfile.gettempdir(), f"{_ENCODED}{name}.arrow")


@contextlib.contextmanager
def student_folder() -> Iterator[Path]:
    """For a student on its way to the store."""
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=_STUDENT) as folder:
        yield Path(folder)


def remove_leftovers() -> None:
    """Delete what a kill left: gigabytes each."""
    for prefix, oldest in _OLDEST.items():
        for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # another user's, or gone by now
                if time.time() - path.stat().st_mtime > oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
