"""Child processes that must end with their owner, recorded so that the next start can end those left by a SIGKILL.

A process is identified by its pid and the clock ticks from the machine's start to its own: a wall clock may be set.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cgd_ray.runtime.folders import state_folder


@dataclass(frozen=True)
class Record:
    """A child and its owner; start times distinguish a process from a later one with the same pid."""

    pid: int
    started: int
    kind: str
    owner_pid: int
    owner_started: int

    @property
    def file(self) -> Path:
        """File of the record on this node."""
        return state_folder("processes") / f"{self.pid}-{self.started}.json"


def children() -> set[int]:
    """Pids of all processes below this one."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def record(pid: int, kind: str) -> Record:
    """Record a child of this process."""
    owner = os.getpid()
    entry = Record(pid, started(pid) or 0, kind, owner, started(owner) or 0)
    entry.file.write_text(json.dumps(asdict(entry)))
    return entry


def end(records: list[Record], grace_seconds: float = 5.0) -> int:
    """Terminate, then kill, the processes that still run; delete all records. Returns how many still ran."""
    alive = []
    for entry in records:
        with contextlib.suppress(psutil.NoSuchProcess):
            if started(entry.pid) == entry.started:
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
    """End the recorded children of owners that have ended. Returns how many still ran."""
    orphans = []
    for file in state_folder("processes").glob("*.json"):
        try:
            entry = Record(**json.loads(file.read_text()))
        except (json.JSONDecodeError, TypeError, FileNotFoundError):
            file.unlink(missing_ok=True)  # cut off by the kill, or removed by another start
            continue
        if started(entry.owner_pid) != entry.owner_started:
            orphans.append(entry)
    return end(orphans)


def started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if there is no such process or only a zombie."""
    try:
        # The fields after the name, which may hold any character: first the state, 19 later the start
        # (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def machine() -> str:
    """Id of this start of the machine and of this container's pids; host names are not unique."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
