"""Real servers for tests: an S3 server, and a Ray head that takes jobs."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
import s3fs

from cgd_ray.compat.s3fs import LiteralS3
from cgd_ray.runtime.folders import cache_folder

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
_SUBMISSIONS = 12


class S3Server:
    """A real S3 server (rclone) with one bucket, for the folders of a directory."""

    bucket = "bucket"
    environment: ClassVar = {
        "AWS_ACCESS_KEY_ID": "cgd-test-key",
        "AWS_SECRET_ACCESS_KEY": "cgd-test-secret",
        # rclone does not know the checksums that newer AWS clients add by default.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        (folder / self.bucket).mkdir()
        self.start()

    def url(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"

    def start(self) -> None:
        keys = f"{self.environment['AWS_ACCESS_KEY_ID']},{self.environment['AWS_SECRET_ACCESS_KEY']}"
        # No cache of writes: what was acknowledged must be there after a kill.
        command = [str(BIN / "rclone"), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", keys]
        with (self._folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--vfs-cache-mode", "off", str(self._folder)], stdout=log, stderr=log
            )
        wait_for_port(self.port)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)


@dataclass(frozen=True)
class RayHead:
    """A Ray head with token authentication whose dashboard takes jobs."""

    address: str
    environment: dict[str, str]

    def submit(self, *entrypoint: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- ENTRYPOINT`, waited for; its output and exit code."""
        command = [str(BIN / "ray"), "job", "submit", "--address", self.address, "--working-dir", str(REPOSITORY), "--"]
        for _ in range(_SUBMISSIONS):
            done = subprocess.run(
                [*command, *entrypoint],
                env=self.environment,
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
            if "No available agent to submit job" not in done.stderr:
                break
            time.sleep(5)  # on a busy machine the head's agent comes long after its dashboard
        return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Serve the folders of a directory as buckets; the keys are in this process's environment meanwhile."""
    before = {name: os.environ.get(name) for name in S3Server.environment}
    server = S3Server(folder)
    os.environ.update(server.environment)
    try:
        yield server
    finally:
        for kind in (s3fs.S3FileSystem, LiteralS3):
            kind.clear_instance_cache()
        server.stop()
        for name, value in before.items():
            _restore(name, value)


@contextlib.contextmanager
def ray_head(home: Path, more: dict[str, str]) -> Iterator[RayHead]:
    """Start a head with a token of its own in the private home."""
    port, dashboard = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="cgd-")
    environment = {
        **os.environ,
        **more,
        "HOME": str(home),
        # Its own, so that nothing later finds its address there; the test's folders are too deep for Ray's sockets.
        "RAY_TMPDIR": folder,
        "CGD_CACHE_DIR": str(cache_folder("models").parent),
        "RAY_AUTH_MODE": "token",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    ray = str(BIN / "ray")
    subprocess.run([ray, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    head = [ray, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    with (home / "head.log").open("w") as log:
        process = subprocess.Popen([*head, "--block"], env=environment, stdout=log, stderr=log)
    try:
        wait_for_port(dashboard, seconds=90)
        yield RayHead(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        process.terminate()  # --block ends the head's processes with it
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def is_engine(process: psutil.Process) -> bool:
    """Whether it is a vLLM engine core: it is spawned, and sooner or later gives itself a title."""
    try:
        title = f"{process.name()} {' '.join(process.cmdline())}"
    except psutil.Error:
        return False
    return "VLLM::" in title or "multiprocessing.spawn" in title


def below(title: str, root: int | None = None) -> list[psutil.Process]:
    """Processes that this one (or the one with that id) started, at any depth, whose titles begin so."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(title):
                found.append(process)
    return found


def engines_left() -> list[psutil.Process]:
    """vLLM's engine cores on this machine, whoever's children they are now, but for those of tests beside this one."""
    engines = [process for process in psutil.process_iter() if is_engine(process)]
    me = psutil.Process()
    beside = set(me.parents()[0].children(recursive=True)) - set(me.children(recursive=True))
    return [process for process in engines if process.is_running() and process not in beside]


def wait_for_port(port: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
