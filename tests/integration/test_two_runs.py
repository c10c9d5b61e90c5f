"""Two commands on one root, together or after a kill, on local disk and on S3: nothing is paid for twice."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cgd_ray.config.run import StorageSection
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import RESULTS
from cgd_ray.storage.tables import Table
from tests.servers import REPOSITORY, S3Server

ENGINES = [
    "student.engine={type: scripted, latency_ms: 100, max_in_flight: 8}",
    "teacher.engine={type: scripted, model: t, latency_ms: 100, max_in_flight: 8}",
]
ROWS = 80


def start(root: str, name: str, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    small = [f"data.limit={ROWS}", "data.holdout.count=2", "curation.require_correct=false", f"run.root={root}"]
    return subprocess.Popen(
        [sys.executable, "jobs/generate.py", "jobs/recipes/demo.yaml", *small, f"run.name={name}", *ENGINES, *more],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def require_once(store: Store) -> None:
    for stage in ("draft", "answer", "critique", "refine"):
        [fingerprint] = store.folders(f"tables/{stage}")
        parts = pa.concat_tables(list(Table(store, stage, fingerprint, RESULTS).batches()))
        counts = Counter(parts["prompt_id"].to_pylist())
        assert (len(counts), max(counts.values())) == (ROWS, 1), stage


@pytest.mark.parametrize("place", ["local", "s3"])
def test_two_names_on_one_root_pay_once(tmp_path: Path, s3: S3Server, place: str) -> None:
    root, storage, more = str(tmp_path / "root"), StorageSection(), list[str]()
    if place == "s3":
        root, storage = s3.url("two"), StorageSection(endpoint_url=s3.endpoint)
        more = [f"storage.endpoint_url={s3.endpoint}"]
    commands = [start(root, name, s3.environment, *more) for name in ("one", "other")]
    said = [command.communicate(timeout=240)[1] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said
    assert sum("waiting for another command" in text for text in said) >= 1
    require_once(Store(root, storage))


@pytest.mark.parametrize("seconds", [0.3, 1.2])
def test_a_killed_command_loses_what_it_had_not_committed_and_no_more(tmp_path: Path, seconds: float) -> None:
    root, flush = tmp_path / "root", 1.0
    first = start(str(root), "one", {}, f"storage.flush_seconds={flush}")
    while not list(root.glob("tables/refine/*/part-*")):
        assert first.poll() is None
        time.sleep(0.05)
    time.sleep(seconds)
    assert first.poll() is None
    first.kill()
    killed = time.time()
    first.communicate(timeout=30)
    parts = list(root.glob("tables/refine/*/part-*"))
    assert killed - max(part.stat().st_mtime for part in parts) < flush + 1.5
    committed = {part.name: part.read_bytes() for part in parts}
    again = start(str(root), "one", {})
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    require_once(Store(str(root)))
    assert all((root / part.relative_to(root)).read_bytes() == committed[part.name] for part in parts)


def test_a_preempted_command_writes_what_it_had_finished(tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = start(str(root), "one", {}, "storage.flush_seconds=30")  # nothing but the end writes telemetry so soon
    while not list(root.glob("tables/refine/*/part-*")):
        assert first.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    first.terminate()
    stopped = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert time.monotonic() - stopped < 20
    assert first.returncode == 3
    assert "stopped by signal SIGTERM; the same command continues" in errors.splitlines()[-1]
    refined = sum(len(pq.read_table(part)) for part in root.glob("tables/refine/*/part-*"))
    observed = sum(len(pq.read_table(part)) for part in root.glob("tables/refine-telemetry/*/part-*"))
    assert refined == observed > 0
    again = start(str(root), "one", {})
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    require_once(Store(str(root)))


def test_one_name_twice_is_refused_at_once(tmp_path: Path) -> None:
    first = start(str(tmp_path / "root"), "one", {})
    lease: Any = None
    while not lease:
        assert first.poll() is None
        lease = list((tmp_path / "root/runs/one").glob(".lease/*.json"))
    second = start(str(tmp_path / "root"), "one", {})
    _, errors = second.communicate(timeout=120)
    assert second.returncode not in (0, None)
    assert f"is being worked on by process {first.pid} on " in errors.splitlines()[-1]
    _, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
