"""Child processes that must not outlive us, recorded so that the next start can end what a SIGKILL left."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cgd_ray.runtime.state import state_folder


@dataclass(frozen=True)
class Record:
    """A child and its owner; start times tell a process from a later one with the same pid."""

    pid: int
    started: float
    kind: str
    owner_pid: int
    owner_started: float

    @property
    def file(self) -> Path:
        """Where the record lies on this node."""
        return state_folder("processes") / f"{self.pid}-{self.started:.2f}.json"


def children() -> set[int]:
    """Pids of all processes below this one."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def record(pid: int, kind: str) -> Record:
    """Write down a child of this process."""
    owner = psutil.Process()
    entry = Record(pid, _started(pid) or 0.0, kind, owner.pid, owner.create_time())
    entry.file.write_text(json.dumps(asdict(entry)))
    return entry


def end(records: list[Record], grace_seconds: float = 5.0) -> int:
    """Terminate, then kill, those that still run; forget all of them. Returns how many still ran."""
    alive = []
    for entry in records:
        with contextlib.suppress(psutil.NoSuchProcess):
            if _started(entry.pid) == entry.started:
                alive.append(psutil.Process(entry.pid))
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(alive, timeout=grace_seconds)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=grace_seconds)
    for entry in records:
        entry.file.unlink(missing_ok=True)
    return len(alive)


def end_orphans() -> int:
    """End the recorded children of owners that are gone. Returns how many still ran."""
    orphans = []
    for file in state_folder("processes").glob("*.json"):
        try:
            entry = Record(**json.loads(file.read_text()))
        except (json.JSONDecodeError, TypeError, FileNotFoundError):
            file.unlink(missing_ok=True)  # torn by the kill, or removed by another start
            continue
        if _started(entry.owner_pid) != entry.owner_started:
            orphans.append(entry)
    return end(orphans)


def _started(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time()
    except psutil.NoSuchProcess:
        return None
