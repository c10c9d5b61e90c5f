"""Two commands on one root, together or after a kill, on local disk and on S3: nothing is paid for twice."""

import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cgd_ray.config.run import StorageSection
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import RESULTS
from cgd_ray.storage.tables import Table
from tests.limited_endpoint import limited_endpoint
from tests.servers import REPOSITORY, S3Server, below

ENGINES = [
    "student.engine={type: scripted, latency_ms: 100, max_in_flight: 8}",
    "teacher.engine={type: scripted, model: t, latency_ms: 100, max_in_flight: 8}",
]
ROWS = 80
TEACHER = ("answer", "critique", "refine")


def start(root: str, name: str, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    small = [f"data.limit={ROWS}", "data.holdout.count=2", "curation.require_correct=false", f"run.root={root}"]
    small += ["generation.critique.verdict=written", "curation.require_verdict=false"]  # one request for each text
    return subprocess.Popen(
        [sys.executable, "jobs/generate.py", "jobs/recipes/demo.yaml", *small, f"run.name={name}", *ENGINES, *more],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def require_once(store: Store) -> None:
    for stage in ("draft", *TEACHER):
        [fingerprint] = store.folders(f"tables/{stage}")
        parts = pa.concat_tables(list(Table(store, stage, fingerprint, RESULTS).batches()))
        counts = Counter(parts["prompt_id"].to_pylist())
        assert (len(counts), max(counts.values())) == (ROWS, 1), stage


def teacher_parts(store: Store) -> list[str]:
    tables = [f"tables/{stage}/{name}" for stage in TEACHER for name in store.folders(f"tables/{stage}")]
    return [f"{table}/{part}" for table in tables for part in store.names(table, ".parquet")]


@pytest.mark.parametrize("place", [pytest.param("local", marks=pytest.mark.long), "s3"])
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


@pytest.mark.parametrize(
    ("place", "execution", "victim"),
    [
        ("s3", "streaming", "driver"),
        pytest.param("local", "staged", "driver", marks=pytest.mark.long),
        pytest.param("local", "staged", "engine", marks=pytest.mark.long),
    ],
)
def test_a_kill_loses_what_was_answered_in_the_last_seconds_and_no_more(
    tmp_path: Path, s3: S3Server, place: str, execution: str, victim: str
) -> None:
    """Counted where it is paid, row by row: at the teacher's endpoint, each 13th answer of which takes a second."""
    flush, answer, write = 1.0, 1.0, 1.0
    root, storage, more = str(tmp_path / "root"), StorageSection(), list[str]()
    if place == "s3":
        root, storage = s3.url(execution), StorageSection(endpoint_url=s3.endpoint)
        more = [f"storage.endpoint_url={s3.endpoint}"]
    with limited_endpoint(per_second=10) as teacher:
        engine = f"type: openai, model: teacher, base_url: {teacher.url}, api_key_env: null, concurrency: 8"
        more += [f"generation.execution={execution}", f"storage.flush_seconds={flush}", f"teacher.engine={{{engine}}}"]
        first = start(root, "one", s3.environment, *more)
        while len(teacher.answered()) < ROWS:  # of 240
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        for process in below("ray::MapWorker", first.pid) if victim == "engine" else [first]:
            process.kill()
        killed = time.monotonic()
        store = Store(root, storage)
        committed = {name: store.read(name) for name in teacher_parts(store)}
        teacher.per_second = 1000
        last = first
        if victim == "driver":
            first.communicate(timeout=30)
            last = start(root, "one", s3.environment, *more)
        _, errors = last.communicate(timeout=240)
    assert last.returncode == 0, errors
    require_once(store)
    assert all(store.read(name) == part for name, part in committed.items())
    times: dict[str, list[float]] = defaultdict(list)  # by what was asked, which names stage and row
    for arrival in teacher.answered():
        times[arrival.text].append(arrival.time)
    assert len(times) == ROWS * len(TEACHER)
    again = [asked[0] for asked in times.values() if len(asked) > 1]
    assert all(asked > killed - flush - answer - write for asked in again)
    assert sum(asked[0] < killed - flush - answer - write for asked in times.values()) > 0


def test_a_preempted_command_writes_what_it_had_finished(tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = start(str(root), "one", {}, "storage.flush_seconds=30")  # nothing but the end writes telemetry so soon
    while not list(root.glob("tables/refine/*/part-*")):
        assert first.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    first.terminate()
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 3
    assert "stopped by signal SIGTERM; rerun the same command to resume" in errors.splitlines()[-1]
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
    assert f": process {first.pid} on " in errors.splitlines()[-1]
    _, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
