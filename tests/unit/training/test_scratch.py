"""What kills leave in a machine's temporary folder."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from cgd_ray.training.scratch import encoded_file, student_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(path: Path, hours: float) -> Path:
    """Last written so long ago."""
    if path.suffix:
        path.write_bytes(b"rows")
    else:
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"weights")
    then = time.time() - hours * 3600
    os.utime(path, (then, then))
    return path


def test_a_student_on_its_way_takes_the_place_of_those_that_were_killed(temporary: Path) -> None:
    gone = [left(temporary / "cgd-student-killed", 25), left(encoded_file("killed"), 2)]
    kept = [
        left(temporary / "cgd-student-uploading", 23),
        left(encoded_file("new"), 0.5),
        left(temporary / "other", 99),
    ]
    with student_folder() as folder:
        (folder / "config.json").write_text("{}")
        assert folder.parent == temporary
        assert not any(path.exists() for path in gone)
    assert sorted(temporary.iterdir()) == sorted(kept)
