"""How models come to a node: from a real S3 server, interrupted and continued, and from a hub; pinned by content."""

import glob
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import s3fs

from cgd_ray.compat.s3fs import LiteralS3
from cgd_ray.config.run import StorageSection
from cgd_ray.errors import ConfigError
from cgd_ray.models.resolve import local_model, pinned_model
from cgd_ray.storage import filesystem, transfers
from tests.servers import REPOSITORY, S3Server

WEIGHTS = bytes(range(256)) * 40  # ten pieces


@pytest.fixture
def storage(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorageSection:
    """An empty cache, and small pieces of which two are fetched at once."""
    monkeypatch.setenv("CGD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(filesystem, "_PIECE_BYTES", 1024)
    monkeypatch.setattr(filesystem, "_PIECES", 2)
    return StorageSection(endpoint_url=s3.endpoint)


@pytest.fixture
def bucket(s3: S3Server) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)


@pytest.fixture
def model(bucket: s3fs.S3FileSystem, request: pytest.FixtureRequest) -> str:
    name = f"bucket/{request.node.name}"
    for file, content in (("config.json", b"{}"), ("empty.txt", b""), ("model.safetensors", WEIGHTS)):
        bucket.pipe_file(f"{name}/{file}", content)
    return f"s3://{name}"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Where the pieces of the weights begin that were asked for; the sixth one is not given."""
    asked, cat_file = list[int](), LiteralS3._cat_file

    async def recorded(fs: Any, path: str, *, start: int, end: int) -> Any:
        if path.endswith("safetensors"):
            asked.append(start)
        if len(asked) == 6:
            raise OSError("the node is taken away")
        return await cat_file(fs, path, start=start, end=end)

    monkeypatch.setattr(LiteralS3, "_cat_file", recorded)
    LiteralS3.clear_instance_cache()  # each instance takes the method when it is made
    yield asked
    LiteralS3.clear_instance_cache()


def test_an_interrupted_download_is_continued(model: str, storage: StorageSection, starts: list[int]) -> None:
    before = transfers.so_far()
    with pytest.raises(OSError, match="taken away"):
        local_model(model, None, storage)
    assert transfers.so_far().done - before.done == 2 + 4096
    assert transfers.so_far().total - before.total == 2 + len(WEIGHTS)
    folder = local_model(model, None, storage)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "empty.txt").read_bytes() == b""
    assert (sorted(starts[:6]), min(starts[6:]) >= 4096) == ([*range(0, 6 * 1024, 1024)], True)
    starts.clear()
    assert local_model(model, None, storage, weights=False) == folder
    assert starts == []


def test_a_prefix_that_changes_is_refused(model: str, storage: StorageSection, bucket: s3fs.S3FileSystem) -> None:
    name, revision = pinned_model(model, None, storage, "student.model")
    assert (name, pinned_model(model, revision, storage, "student.model")[1]) == (model, revision)
    assert local_model(name, revision, storage)
    bucket.pipe_file(f"{model.removeprefix('s3://')}/config.json", b"{ }")
    with pytest.raises(ConfigError, match=r"^model on \S+: s3://\S+ has changed since the command began. Fix: bring"):
        local_model(name, revision, storage)


def test_a_relative_directory_is_the_same_on_every_node(
    storage: StorageSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.chdir(tmp_path)
    pinned = pinned_model("models/mine", None, storage, "student.model")
    assert pinned[0] == str(folder)
    monkeypatch.chdir("/")  # where a worker works
    assert local_model(*pinned, storage) == folder
    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    with pytest.raises(ConfigError, match=rf"^model on \S+: {folder} holds another model than where the command began"):
        local_model(*pinned, storage)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=rf"^model: {folder} is not a directory with a model on \S+ "):
        local_model(*pinned, storage)


COMMIT = "c" * 40
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}


class Hub(BaseHTTPRequestHandler):
    """Answers as a hub does of which every repository has these files."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        entries = [{"type": "file", "path": name, "size": len(file), "oid": "o" * 40} for name, file in FILES.items()]
        answers = {
            "/api/models/org/name/revision/main": json.dumps({"id": "org/name", "sha": COMMIT}).encode(),
            f"/api/models/org/name/tree/{COMMIT}": json.dumps(entries).encode(),
        } | {f"/org/name/resolve/{COMMIT}/{name}": content for name, content in FILES.items()}
        if path not in answers:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(answers[path]).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(answers[path])))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answers[path])

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


FROM_HUB = """
from cgd_ray.config.run import StorageSection
from cgd_ray.storage import transfers
from cgd_ray.compat.s3fs import LiteralS3
from cgd_ray.models.resolve import local_model, pinned_model
pinned = pinned_model("org/name", "main", StorageSection(), "student.model")
print(pinned[1])
print(local_model(*pinned, StorageSection()))
print(*transfers.so_far())
"""


def test_what_comes_from_a_hub_is_pinned_and_counted(tmp_path: Path) -> None:
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", FROM_HUB],
            env=os.environ | own | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        hub.shutdown()
        hub.server_close()
    assert done.returncode == 0, done.stderr[-2000:]
    commit, folder, counted = done.stdout.splitlines()
    assert commit == COMMIT
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS
    size = sum(map(len, FILES.values()))
    assert counted == f"{size} {size}"


def test_vllm_gets_a_path_that_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM finds weights with `glob.glob(FOLDER/*.safetensors)`."""
    monkeypatch.setenv("CGD_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "runs [1]" / "student*"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    for _ in range(2):
        path = local_model(str(folder), None, StorageSection())
        assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
        assert not glob.has_magic(str(path))
        assert path.resolve() == folder
    monkeypatch.setenv("CGD_CACHE_DIR", str(tmp_path / "cache [2]"))
    with pytest.raises(ConfigError, match=r"cache \[2\]/links: .*set CGD_CACHE_DIR to another one"):
        local_model(str(folder), None, StorageSection())
