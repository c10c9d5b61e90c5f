"""Names that other tools would read as patterns, URLs or versions are names here, for every verb on every store."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
import torch
from s3fs import S3FileSystem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from cgd_ray.compat import s3fs as literal_s3
from cgd_ray.config.run import StorageSection
from cgd_ray.data.files import find_files
from cgd_ray.models import s3
from cgd_ray.storage.filesystem import Store
from cgd_ray.training.checkpoint.files import RangeReader, StoreWriter
from cgd_ray.training.launch.resources import pyarrow_filesystem
from tests.servers import REPOSITORY, S3Server

NAMES = [
    "team[1]",
    "team?",
    "team*",
    "t{e,x}am",
    "[!x]",
    "team#1",
    "team%201",
    " team",
    "a::1",
    "a?versionId=1",
    "té'|;",
]
NEIGHBOURS = ["team1", "team", "team 1", "texam", "1", "a"]
"""What the names would match as patterns, lose as versions, or become when they are cut."""

PLACES = [("local", name) for name in NAMES] + [("s3", name) for name in NAMES]


@pytest.fixture(params=PLACES, ids=lambda place: f"{place[0]}-{place[1]}")
def store(request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path) -> Iterator[Store]:
    """A store of such a name among neighbours, which are as they were at the end."""
    place, name = request.param
    above, storage = str(tmp_path), StorageSection()
    if place == "s3":
        above, storage = s3.url(f"names-{NAMES.index(name)}"), StorageSection(endpoint_url=s3.endpoint)
    beside = {near: Store(f"{above}/{near}", storage) for near in NEIGHBOURS if near != name}
    for near, each in beside.items():
        each.write("folder/file", near.encode())
    made = Store(f"{above}/{name}", storage)
    yield made
    made.remove("")
    assert not made.exists("")
    for near, each in beside.items():
        assert each.read("folder/file") == near.encode()


def test_every_verb_takes_names_as_they_stand(store: Store, tmp_path: Path) -> None:
    _write_read_and_delete(store, tmp_path)
    _name_files_like_it(store)
    _keep_checkpoints(store)
    _keep_files_of_ray(store)
    _hold_models_and_data(store)


def _write_read_and_delete(store: Store, tmp_path: Path) -> None:
    assert not store.exists("file")
    assert store.may_delete()
    for name in ("file", "folder/file", "folder/other", "more/file"):
        store.write(name, name.encode())
    assert store.read("folder/file") == b"folder/file"
    assert list(store.read_each(["folder/file", "folder/other"])) == [b"folder/file", b"folder/other"]
    assert store.names("folder") == ["file", "other"]
    assert store.folders("") == ["folder", "more"]
    store.download("folder", tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["file", "other"]
    store.upload(tmp_path / "copy", "again")
    assert store.read("again/other") == b"folder/other"
    store.remove_files(["again/file"])
    assert store.names("again") == ["other"]
    assert store.discard("again")
    assert not store.exists("again")
    store.remove("folder")
    assert store.folders("") == ["more"]


def _name_files_like_it(store: Store) -> None:
    above = Store(store.root.rsplit("/", 1)[0], store.storage)
    name = store.root.rsplit("/", 1)[1]
    above.write(f"{name}/{name}.json", b"1")
    above.write(f"{name}/file", b"2")
    assert set(above.names(name)) == {f"{name}.json", "file"}
    assert above.read(f"{name}/{name}.json") == b"1"
    above.remove(f"{name}/{name}.json")
    assert above.names(name) == ["file"]
    above.remove_files([f"{name}/file"])
    assert above.names(name) == []


def _keep_checkpoints(store: Store) -> None:
    for _ in range(2):  # the second writes over the first
        save({"weights": torch.arange(3.0)}, storage_writer=StoreWriter(store, "step-1"), no_dist=True)
    state = {"weights": torch.zeros(3)}
    load(state, storage_reader=RangeReader(store, "step-1"), no_dist=True)
    assert state["weights"].tolist() == [0.0, 1.0, 2.0]


def _keep_files_of_ray(store: Store) -> None:
    files = pyarrow_filesystem(store)
    files.create_dir(store.path("ray/train"), recursive=True)
    with files.open_output_stream(store.path("ray/train/file")) as stream:
        stream.write(b"3")
    assert files.get_file_info(store.path("ray/train/file")).type == pyarrow.fs.FileType.File
    files.move(store.path("ray/train/file"), store.path("ray/train/moved"))
    assert store.names("ray/train") == ["moved"]
    files.delete_file(store.path("ray/train/moved"))
    assert store.names("ray/train") == []
    store.write("ray/train/last", b"4")
    files.delete_dir(store.path("ray"))
    assert not store.exists("ray/train/last")


def _hold_models_and_data(store: Store) -> None:
    store.write("model/config.json", b"{}")
    store.write("data/rows.jsonl", b'{"prompt": "x"}\n')
    if store.is_s3:
        content = s3.digest(store.url("model"), store.storage, "student.model")
        assert (s3.fetch(store.url("model"), content, store.storage, ()) / "config.json").read_bytes() == b"{}"
    for path in ("data", "data/rows.jsonl"):
        assert find_files(store.url(path), (".jsonl",), store.storage).paths == [store.path("data/rows.jsonl")]


def test_a_request_that_hangs_is_sent_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, call = list[str](), S3FileSystem._call_s3

    async def hanging(fs: S3FileSystem, method: str, *arguments: object, **options: object) -> object:
        asked.append(method)
        if asked.count("put_object") == 1 and method == "put_object":
            await asyncio.Event().wait()
        return await call(fs, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", hanging)
    monkeypatch.setattr(literal_s3, "_STUCK_SECONDS", 0.5)
    store = Store(s3.url("hanging"), StorageSection(endpoint_url=s3.endpoint))
    store.write("file", b"1")
    assert store.read("file") == b"1"
    assert asked.count("put_object") == 2


_WRITE = """
import sys
from cgd_ray.config.run import StorageSection
from cgd_ray.errors import ConfigError
from cgd_ray.storage.filesystem import Store
try:
    store = Store(sys.argv[1], StorageSection(endpoint_url=sys.argv[2]))
    store.write("file", b"content")
    print(store.read("file"))
except ConfigError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("around", ["{}\n", " {}\r\n", "{}"])
def test_keys_from_files_have_line_breaks(s3: S3Server, around: str) -> None:
    keys = {
        name: around.format(value)
        for name, value in s3.environment.items()
        if name.startswith("AWS_") and "KEY" in name
    }
    command = [sys.executable, "-c", _WRITE, s3.url("keys"), s3.endpoint]
    done = subprocess.run(
        command, env={**os.environ, **keys}, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout == "b'content'\n", done.stderr


def test_what_is_no_key_is_refused_by_its_variable(s3: S3Server) -> None:
    odd = {"AWS_SECRET_ACCESS_KEY": "first-half\nsecond-half"}
    command = [sys.executable, "-c", _WRITE, s3.url("keys"), s3.endpoint]
    done = subprocess.run(
        command, env={**os.environ, **odd}, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("storage: the environment variable AWS_SECRET_ACCESS_KEY holds blanks, line breaks")
    assert "half" not in done.stderr
