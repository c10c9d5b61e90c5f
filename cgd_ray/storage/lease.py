"""Lease of a folder of a root for one command at a time, locally and on S3, without synchronised clocks.

Object stores have no reliable lock, so this lease only prevents two commands from paying for the same rows. Tables do
not depend on it: parts are never changed and rows name their parents. Two commands that each consider the lease theirs
waste money, but damage nothing.
"""

import contextlib
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import structlog

from cgd_ray.errors import RERUN, CgdError, StoppedError
from cgd_ray.runtime.processes import machine, started
from cgd_ray.storage.filesystem import Store, store_errors

log = structlog.get_logger(__name__)

_BEAT_SECONDS = 5.0  # between two heartbeats of a claim
_GIVE_SECONDS = 5.0
_SAY_SECONDS = 60.0
_LOOKS_A_BEAT = 5  # of a waiting command
_DEAD_BEATS = 6  # without a heartbeat, by the clock of the waiting command: the holder has ended


@dataclass(frozen=True)
class Claim:
    """Claim of a command, written to `FOLDER/.lease/NAME.json`."""

    name: str
    host: str
    pid: int
    machine: str
    """Identifies, with `pid` and `started`, one process uniquely (see `cgd_ray.runtime.processes`)."""
    started: int
    beat: int = 0
    holds: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class _Seen:
    beat: int
    since: float
    changed: bool  # since this command first looked
    looks: int = 1  # at this same beat: after an outage, one look proves nothing


class Lease:
    """A folder that this command holds or waits for.

    A command writes a claim to request the folder. It holds the folder when no live claim holds it and no live claim
    with a lower name requests it. Two commands that write at the same moment may both hold it for two beats; then the
    one with the higher name has lost it.
    """

    def __init__(self, store: Store, folder: str, beat_seconds: float = _BEAT_SECONDS) -> None:
        self.folder = folder
        self.lost = False
        self._store = store
        self._beat_seconds = beat_seconds
        pid = os.getpid()
        self._mine = Claim(secrets.token_hex(8), socket.gethostname(), pid, machine(), started(pid) or 0)
        self._seen: dict[str, _Seen] = {}
        self._written = time.monotonic()
        self._doubted = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._live, name="lease", daemon=True)

    def take(self, *, wait: bool) -> bool:
        """Hold the folder as soon as no other command does; returns whether this command had to wait.

        Raises:
            CgdError: a live command goes before this one, and `wait` is false.
        """
        self._say(holds=False)
        self._heart.start()
        try:
            return self._come_to_hold(wait=wait)
        except BaseException:
            self.give_back()
            raise

    def require(self) -> None:
        """Stop the command if the lease is lost.

        Raises:
            StoppedError: the lease is lost.
        """
        if self.lost:
            raise StoppedError(f"{self._url}: another command works on it. Fix: wait for it; {RERUN}")

    def give_back(self) -> None:
        """Release the folder; if the storage is unreachable, other commands detect the end of this process later."""
        self._ended.set()
        self._heart.join(_GIVE_SECONDS)
        if self._heart.is_alive():  # S3 is retried for minutes, and a command has half a minute to end
            return
        with contextlib.suppress(*store_errors()):
            self._withdraw(self._mine.name)

    def _come_to_hold(self, *, wait: bool) -> bool:
        waited, said = False, -math.inf
        while rival := self._rival():
            if not wait and self._lives(rival):
                raise CgdError(f"{self._url}: {rival} works on it. Fix: wait for it, or give another run.name")
            if time.monotonic() - said > _SAY_SECONDS:
                log.info("waiting for another command, or for proof that it is gone", holder=str(rival), at=self._url)
                said = time.monotonic()
            waited = True
            time.sleep(self._beat_seconds / _LOOKS_A_BEAT)
        return waited

    @property
    def _url(self) -> str:
        return self._store.url(self.folder)

    def _file(self, name: str) -> str:
        return f"{self.folder}/.lease/{name}.json"

    def _say(self, *, holds: bool | None = None) -> None:
        """Write a heartbeat; `holds`, unless None, changes the state in the claim."""
        with self._lock:
            holds = self._mine.holds if holds is None else holds
            self._mine = replace(self._mine, beat=self._mine.beat + 1, holds=holds and not self.lost)
            self._store.write(self._file(self._mine.name), json.dumps(asdict(self._mine)).encode())
            self._written = time.monotonic()

    def _rival(self) -> Claim | None:
        """The claim that goes before this command; if None, this command holds the folder now."""
        others = self._others()
        before = next((claim for claim in others if claim.holds or claim.name < self._mine.name), None)
        if before is None:
            self._say(holds=True)
            before = self._lower_holder()
            if before is not None:
                self._say(holds=False)
        return before

    def _lower_holder(self) -> Claim | None:
        return next((claim for claim in self._others() if claim.holds and claim.name < self._mine.name), None)

    def _is_taken_after_silence(self, written: float) -> bool:
        """Whether another command holds the folder after this one wrote no heartbeat since `written`."""
        silent = time.monotonic() - written
        limit = (_DEAD_BEATS - 1) * self._beat_seconds
        return self._mine.holds and silent > limit and any(claim.holds for claim in self._others())

    def _outrun(self) -> bool:
        """Whether a claim with a lower name holds the folder, too, now and a beat ago.

        One look is not enough: a heartbeat whose write was delayed may come from a command that has lost the folder
        meanwhile, and will correct its claim.
        """
        before, self._doubted = self._doubted, self._mine.holds and self._lower_holder() is not None
        return before and self._doubted

    def _others(self) -> list[Claim]:
        """The claims of other running commands; removes the claims of ended ones."""
        claims = [self._read(name) for name in self._store.names(f"{self.folder}/.lease", suffix=".json")]
        others = [claim for claim in claims if claim is not None and claim.name != self._mine.name]
        dead = [claim for claim in others if self._is_dead(claim)]
        for claim in dead:
            self._withdraw(claim.name)
        return [claim for claim in others if claim not in dead]

    def _withdraw(self, name: str) -> None:
        """Delete a claim; one that cannot be deleted is overwritten with `{}`, for which no command waits."""
        if not self._store.discard(self._file(name)):
            self._store.write(self._file(name), b"{}")

    def _read(self, file: str) -> Claim | None:
        try:
            return Claim(**json.loads(self._store.read(f"{self.folder}/.lease/{file}")))
        except (FileNotFoundError, TypeError, ValueError):  # released or withdrawn, or written by another version
            return None

    def _is_dead(self, claim: Claim) -> bool:
        if claim.machine == self._mine.machine and started(claim.pid) != claim.started:
            return True
        seen = self._seen.get(claim.name)
        if seen is None or seen.beat != claim.beat:
            seen = _Seen(claim.beat, time.monotonic(), seen is not None)
        else:
            seen = replace(seen, looks=seen.looks + 1)
        self._seen[claim.name] = seen
        silent = time.monotonic() - seen.since
        return silent > _DEAD_BEATS * self._beat_seconds and seen.looks > 2 * _LOOKS_A_BEAT

    def _lives(self, claim: Claim) -> bool:
        """Whether the claim's process is on this machine, or its heartbeat changed while this command watched it."""
        return claim.machine == self._mine.machine or self._seen[claim.name].changed

    def _live(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            # A store fails in many ways and recovers. A command that cannot write a heartbeat cannot commit rows
            # either, so it is enough to check the holder of the folder after the store has recovered.
            with contextlib.suppress(Exception):
                written = self._written
                # Check before the claim is written, since the other command would give way to it; and after it, since
                # one write to a store may take minutes.
                self.lost = self.lost or self._is_taken_after_silence(written)
                self._say()
                self.lost = self.lost or self._is_taken_after_silence(written) or self._outrun()
                if self.lost and self._mine.holds:
                    self._say()


@contextlib.contextmanager
def hold_lease(store: Store, folder: str, *, wait: bool) -> Iterator[Lease]:
    """Hold a folder while the block runs; see `Lease.take`."""
    lease = Lease(store, folder)
    lease.take(wait=wait)
    try:
        yield lease
    finally:
        lease.give_back()
