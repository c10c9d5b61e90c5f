"""The whole way, one job per phase, with a teacher behind HTTP: a real vLLM server with a key, staged, ZeRO-3."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from cgd_ray.errors import ConfigError
from cgd_ray.inference.openai.engine import check_endpoint
from cgd_ray.inference.openai.options import OpenAIOptions
from cgd_ray.inference.vllm.options import VllmOptions
from tests.servers import REPOSITORY, free_port

RECIPE = "jobs/recipes/openai-teacher.yaml"
ROWS = 5


@dataclass(frozen=True)
class Endpoint:
    url: str
    key: str


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    # `vllm serve` looks for the metadata of a package named vllm, which the CPU build's is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(teacher_dir)]
    command += ["--served-model-name", "teacher", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--api-key", key, "--max-model-len", "4096", "--dtype", VllmOptions().compute_dtype()]
    command += ["--enforce-eager"]
    cpu = {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("teacher") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(command, env={**os.environ, **cpu}, stdout=output, stderr=output)
    below: list[psutil.Process] = []
    try:
        _wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log)
        below = psutil.Process(server.pid).children(recursive=True)
        yield Endpoint(f"http://127.0.0.1:{port}/v1", key)
    finally:
        server.terminate()
        server.wait(timeout=60)
        for process in psutil.wait_procs(below, timeout=20)[1]:
            process.kill()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def logs() -> Iterator[Path]:
    """Ray's folder; pytest's own are too deep for the paths of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="cgd-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def output(teacher: Endpoint, root: Path, logs: Path) -> str:
    overrides = [
        f"run.root={root}",
        f"data.limit={ROWS}",
        "data.holdout.count=2",
        "teacher.engine.model=teacher",
        f"teacher.engine.base_url={teacher.url}",
        "teacher.engine.api_key_env=CGD_TEST_TEACHER_KEY",
        "generation.execution=staged",
        "generation.draft.max_tokens=120",
        "generation.critique.max_tokens=256",
        "generation.refine.max_tokens=256",
        "curation.require_verdict=false",
        "training.zero_stage=3",
        "training.workers=1",
        "training.epochs=1",
        "training.batch_size=2",
        "evaluation.max_tokens=24",
    ]
    environment = {**os.environ, "CGD_TEST_TEACHER_KEY": teacher.key, "RAY_TMPDIR": str(logs)}
    said = ""
    for phase in ("generate", "train", "evaluate"):
        assert not (root / "runs/openai-teacher/manifest.json").exists()
        done = subprocess.run(
            [sys.executable, f"jobs/{phase}.py", RECIPE, *overrides],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        said += done.stdout + done.stderr
        assert done.returncode == 0, said[-5000:]
    return said


def test_the_endpoints_texts_train_a_student(output: str, root: Path) -> None:
    manifest: dict[str, Any] = json.loads((root / "runs" / "openai-teacher" / "manifest.json").read_text())
    assert manifest["generation"]["cost"]["execution"] == "staged"
    counts = manifest["generation"]["result"]["stages"]["critique"]
    assert counts["ok"] + counts["truncated"] + counts["blocked"] == ROWS
    assert counts["ok"] > 0
    assert manifest["training"]["result"]["student"]["steps"] >= 1
    parts = (root / "tables" / "critique").glob("*/*.parquet")
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert len(rows) == counts["ok"] + counts["truncated"]
    for row in rows:
        assert row["model"].startswith("openai:")
        assert "teacher" in row["model"]
        assert row["prompt_tokens"] > 50
        assert row["status"] == "ok" or row["finish_reason"] == "length"


@pytest.mark.usefixtures("output")
def test_no_process_outlives_its_job(logs: Path) -> None:
    assert [title for title, environment in _processes() if environment.get("RAY_TMPDIR") == str(logs)] == []


def _processes() -> Iterator[tuple[str, dict[str, str]]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            yield process.name(), process.environ()


@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        ("change-me", None, "teacher.engine.model change-me: not known at .*; it has teacher"),
        ("teacher", "sk-wrong", "the key in CGD_TEST_TEACHER_KEY is refused"),
    ],
)
def test_a_wrong_model_or_key_is_said_before_anything_is_made(
    teacher: Endpoint, model: str, key: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CGD_TEST_TEACHER_KEY", key or teacher.key)
    options = OpenAIOptions(type="openai", model=model, base_url=teacher.url, api_key_env="CGD_TEST_TEACHER_KEY")
    with pytest.raises(ConfigError, match=message):
        check_endpoint(options)


def test_the_key_is_in_no_file_no_log_and_no_card(teacher: Endpoint, output: str, root: Path, logs: Path) -> None:
    assert teacher.key not in output
    files = [path for folder in (root, logs) for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"README.md", "config.json", "manifest.json", "raylet.out"} <= names
    assert [path for path in files if teacher.key.encode() in path.read_bytes()] == []


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    pytest.fail(f"vLLM does not answer at {url}: {log.read_text()[-3000:]}")
