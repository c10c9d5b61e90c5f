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
    written = path if path.suffix else path / "model.safetensors"
    written.parent.mkdir(exist_ok=True)
    written.write_bytes(b"rows or weights")
    for one in (written, path):
        then = time.time() - hours * 3600
        os.utime(one, (then, then))
    return path


def test_a_student_on_its_way_takes_the_place_of_those_that_were_killed(temporary: Path) -> None:
    gone = [left(temporary / "cgd-student-killed", 25), left(encoded_file("killed"), 25)]
    kept = [
        left(temporary / "cgd-student-uploading", 23),
        left(encoded_file("copied on another node"), 11),
        left(temporary / "other", 99),
    ]
    written_on = left(temporary / "cgd-student-large", 30)
    (written_on / "model.safetensors").write_bytes(b"more")  # which does not change the folder's own time
    kept.append(written_on)
    with student_folder() as folder:
        (folder / "config.json").write_text("{}")
        assert folder.parent == temporary
        assert not any(path.exists() for path in gone)
    assert sorted(temporary.iterdir()) == sorted(kept)
