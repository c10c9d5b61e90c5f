"""What a SIGKILL leaves behind is found and ended by the next start, and nothing else is."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cgd_ray.runtime import processes
from cgd_ray.runtime.cores import lease_cores, loading_alone


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


OWNER = """
import subprocess, sys, time
from cgd_ray.runtime import processes
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
processes.record(child.pid, "test")
print(child.pid, flush=True)
time.sleep(300)
"""


def test_a_killed_owners_child_is_ended_and_a_living_owners_is_not(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    assert processes.end_orphans() == 0
    assert psutil.pid_exists(child)
    owner.kill()
    owner.wait()
    assert processes.end_orphans() == 1
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert processes.end_orphans() == 0


def test_a_process_that_reuses_a_pid_is_left_alone() -> None:
    mine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        entry = processes.record(mine.pid, "test")
        stale = processes.Record(entry.pid, entry.started - 100, "test", entry.owner_pid, entry.owner_started)
        assert processes.end([stale]) == 0
        assert mine.poll() is None
        assert processes.end([entry]) == 1
    finally:
        mine.kill()
        mine.wait()


def test_a_clock_that_is_set_makes_nobody_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        processes.record(child.pid, "test")
        booted = psutil.boot_time()
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: booted + 3600)
        monkeypatch.setattr(psutil._pslinux, "BOOT_TIME", booted + 3600, raising=False)
        assert processes.end_orphans() == 0
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_torn_record_is_forgotten(tmp_path: Path) -> None:
    from cgd_ray.runtime.folders import state_folder

    torn = state_folder("processes") / "1-2.json"
    torn.write_text('{"pid": 1')
    assert processes.end_orphans() == 0
    assert not torn.exists()


def test_engines_that_share_a_gpu_load_one_after_the_other() -> None:
    loading = list[int]()

    def load(engine: int) -> int:
        with loading_alone("0"):
            loading.append(engine)
            time.sleep(0.05)
            together = len(loading)
            loading.remove(engine)
            return together

    with loading_alone("1"), ThreadPoolExecutor(4) as threads:  # another GPU
        assert list(threads.map(load, range(4))) == [1] * 4


def test_two_leases_take_different_cores_where_there_are_enough() -> None:
    first, second = lease_cores(1), lease_cores(1)
    try:
        if len(psutil.Process().cpu_affinity()) > 1:
            assert not set(first.cores) & set(second.cores)
        assert len(first.cores) == len(second.cores) == 1
    finally:
        first.release()
        second.release()
    everything = lease_cores(10_000)
    assert len(everything.cores) == len(psutil.Process().cpu_affinity())
    everything.release()
