"""CI's rule on skips, tried in sessions of their own with the real conftest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def session(folder: Path, test: str, ci: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs a CUDA device\n")
    (folder / "test_it.py").write_text(f"import pytest\n\n\n{test}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    environment = {**os.environ, "CI": ci, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "test",
    [
        "def test_a(): pytest.skip('no reason')\n",
        "pytest.importorskip('no_such_module')\n\ndef test_a(): pass\n",
    ],
)
def test_a_skip_fails_in_ci_only(tmp_path: Path, test: str) -> None:
    in_ci = session(tmp_path, test, ci="true")
    assert in_ci.returncode == pytest.ExitCode.TESTS_FAILED, in_ci.stdout
    assert "which fails the session" in in_ci.stdout
    # a module skipped as a whole leaves nothing to run, which pytest reports by a code of its own
    assert session(tmp_path, test, ci="").returncode in {
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    }


def test_a_missing_gpu_is_no_failure_in_ci(tmp_path: Path) -> None:
    done = session(tmp_path, "@pytest.mark.gpu\ndef test_a(): assert False\n", ci="true")
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "1 skipped" in done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    done = session(tmp_path, "@pytest.mark.xfail\ndef test_a(): assert False\n", ci="true")
    assert done.returncode == pytest.ExitCode.OK, done.stdout
