"""One root, local or S3, with atomic writes."""

import contextlib
import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import fsspec
import structlog

from cgd_ray.config.places import checked_place
from cgd_ray.config.run import StorageSection
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.redaction import tidy_secret
from cgd_ray.storage import transfers

log = structlog.get_logger(__name__)

# botocore waits up to 20 s before each retry: an unreachable or throttling store delays a run, but does not end it.
_PATIENCE = {"mode": "standard", "max_attempts": 12}
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # botocore uses them unchanged
_MOST_KEYS = 1000  # most keys that S3 deletes with one request
_PIECE_BYTES, _PIECES = 16 * 2**20, 8  # pieces of a large file fetched in parallel: one connection gives 100 MB/s
_AT_A_TIME = 16  # files fetched in parallel: a small one takes some 20 ms, whatever its size


class NotDeletedError(OSError):
    """Files could not be deleted. S3 answers a bulk delete with success, and reports refused keys one by one."""


class _Entry(TypedDict):
    """A file or folder in a listing."""

    name: str
    size: int
    type: str


@dataclass(frozen=True)
class Store:
    """Files below a root, named by relative POSIX paths. Cheap to pickle: each process opens its own connection."""

    root: str
    storage: StorageSection = field(default_factory=StorageSection)
    patient: bool = False
    """Retry S3 for minutes. Not for a first access: the error of a wrong endpoint would take as long to appear."""

    @property
    def is_s3(self) -> bool:
        """Whether the root is a bucket rather than a directory."""
        return self.root.startswith("s3://")

    @cached_property
    def fs(self) -> Any:
        """The fsspec file system of the root."""
        return open_filesystem(self.root, self.storage, patient=self.patient)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "storage": self.storage, "patient": self.patient}

    def path(self, name: str) -> str:
        """The full path of `name` for this store's file system (no scheme on S3)."""
        base = self.root.removeprefix("s3://").rstrip("/")
        return f"{base}/{name}" if name else base

    def url(self, name: str = "") -> str:
        """The full path of `name` for users and other libraries (with the scheme on S3)."""
        return f"s3://{self.path(name)}" if self.is_s3 else self.path(name)

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name exists."""
        return bool(self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        """The file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        content: bytes = self.fs.cat_file(self.path(name))
        return content

    def read_each(self, names: Sequence[str]) -> Iterator[bytes]:
        """The files' bytes, in the order of the names; on S3, where each read is slow, several are read in parallel.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if not self.is_s3 or len(names) == 1:
            yield from map(self.read, names)
            return
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="read") as threads:
            left, coming = iter(names), deque[Future[bytes]]()
            coming.extend(threads.submit(self.read, name) for name in islice(left, _AT_A_TIME))
            while coming:
                yield coming.popleft().result()
                coming.extend(threads.submit(self.read, name) for name in islice(left, 1))

    def write(self, name: str, content: bytes) -> None:
        """Put the whole file, or none of it, under its final name.

        S3: one put, which S3 makes visible as a whole. Local: temporary name, fsync, `os.replace`.
        """
        if self.is_s3:
            self.fs.pipe_file(self.path(name), content)
            return
        final = Path(self.path(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
            _sync(final.parent)  # without it a power cut may undo the rename
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def names(self, folder: str, suffix: str = "") -> list[str]:
        """Names of the files directly in a folder, sorted; none where there is no such folder."""
        return list(self.sizes(folder, suffix))

    def sizes(self, folder: str, suffix: str = "") -> dict[str, int]:
        """Bytes of the files directly in a folder, by name, sorted; none where there is no such folder."""
        files = ((_last(entry), entry["size"]) for entry in self._entries(folder) if entry["type"] == "file")
        return dict(sorted((name, size) for name, size in files if name.endswith(suffix) and not name.startswith(".")))

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder, sorted; none where there is no such folder."""
        return sorted(_last(entry) for entry in self._entries(folder) if entry["type"] == "directory")

    def _entries(self, folder: str) -> list[_Entry]:
        # s3fs caches listings; another process may have added files since.
        self.fs.invalidate_cache(self.path(folder))
        try:
            entries: list[_Entry] = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        return entries

    def upload(self, local: Path, name: str) -> None:
        """Copy a local directory into the store. Its files become visible one by one: write a manifest after it."""
        for file in _files(local):
            target = self.path(f"{name}/{file.relative_to(local).as_posix()}")
            self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self.fs.put_file(str(file), target)

    def download(self, name: str, local: Path, *, ignored: Sequence[str] = ()) -> None:
        """Copy a folder of the store into a local directory, except files that match one of the patterns in `ignored`.

        Continues an interrupted download in the directory: the folder must not have changed since.
        """
        base = self.path(name)
        self.fs.invalidate_cache(base)
        found = self.fs.find(base, detail=True)
        sizes = {path: info["size"] for path, info in found.items() if not any(fnmatch(path, each) for each in ignored)}
        transfers.expect(sum(sizes.values()))
        for source, size in sizes.items():
            target = local / source.removeprefix(base).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as file:
                transfers.arrived(file.tell())
                self._append(source, size, file)

    def _append(self, source: str, size: int, file: BinaryIO) -> None:
        """Append the missing bytes, several pieces at a time; all are on disk before the next ones are fetched."""

        def piece(start: int) -> bytes:
            content: bytes = self.fs.cat_file(source, start=start, end=min(size, start + _PIECE_BYTES))
            return content

        with ThreadPoolExecutor(_PIECES, thread_name_prefix="download") as threads:
            while (done := file.tell()) < size:
                file.writelines(threads.map(piece, range(done, min(size, done + _PIECES * _PIECE_BYTES), _PIECE_BYTES)))
                file.flush()
                os.fsync(file.fileno())
                transfers.arrived(file.tell() - done)

    def remove(self, name: str) -> None:
        """Delete a file or folder, if it exists.

        Raises:
            NotDeletedError: the store keeps some of it.
        """
        if self.is_s3:
            self.fs.invalidate_cache(self.path(name))
            self._delete_keys([str(path) for path in self.fs.find(self.path(name))])
        elif self.fs.exists(self.path(name)):
            with contextlib.suppress(FileNotFoundError):  # another process deleted it first
                self.fs.rm(self.path(name), recursive=True)

    def remove_files(self, names: list[str]) -> None:
        """Delete those of the files that exist; on S3, a thousand with one request.

        Raises:
            NotDeletedError: the store keeps some of them.
        """
        if self.is_s3:
            self._delete_keys([self.path(name) for name in names])
            return
        for name in names:
            Path(self.path(name)).unlink(missing_ok=True)

    def discard(self, name: str) -> bool:
        """Delete a file or folder that only takes space. Returns whether that was allowed; logs a warning if not."""
        try:
            self.remove(name)
        except (NotDeletedError, PermissionError) as error:
            log.warning(f"{self.url(name)}: cannot be deleted, and stays: {error}")
            return False
        return True

    def may_delete(self, folder: str = "") -> bool:
        """Whether files of this folder can be deleted, tested with a probe file."""
        probe = f"{folder}/.probe-{secrets.token_hex(4)}".lstrip("/")
        self.write(probe, b"probe")
        return self.discard(probe) and not self.exists(probe)

    def _delete_keys(self, paths: list[str]) -> None:
        """Delete keys in bulk, as s3fs does, and also check the errors of single keys, which s3fs ignores."""
        bucket, _, _ = self.fs.split_path(self.path(""))
        refused: list[dict[str, str]] = []
        for start in range(0, len(paths), _MOST_KEYS):
            some = paths[start : start + _MOST_KEYS]
            keys = [{"Key": self.fs.split_path(path)[1]} for path in some]
            answer = self.fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            refused += answer.get("Errors", [])
            for path in some:
                self.fs.invalidate_cache(path)
        # Another process may have deleted it first.
        if kept := next((error for error in refused if self.fs.exists(f"{bucket}/{error['Key']}")), None):
            raise NotDeletedError(
                f"s3://{bucket}/{kept['Key']}: {kept.get('Code')}: {len(refused)} of {len(paths)} files are not "
                "deleted. Fix: give the keys the right to delete (s3:DeleteObject)"
            )


def open_filesystem(url: str, storage: StorageSection, *, patient: bool = False) -> Any:
    """The fsspec file system for a local path or an `s3://` URL.

    Raises:
        ConfigError: the URL has another scheme, or looks mistyped, or a key in the environment is malformed.
    """
    try:
        checked_place(url)
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from error
    if url.startswith("s3://"):
        try:
            for variable in _S3_KEYS:
                tidy_secret(variable, "storage")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        from cgd_ray.compat.s3fs import LiteralS3  # takes half a second, which local runs save

        return LiteralS3(
            endpoint_url=storage.endpoint_url,
            client_kwargs={"region_name": storage.region} if storage.region else {},
            config_kwargs={"retries": _PATIENCE} if patient else {},
            anon=storage.anonymous,
        )
    return fsspec.filesystem("file", auto_mkdir=True)


def store_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a store that is unreachable, refuses the access, or is full."""
    from botocore.exceptions import BotoCoreError, ClientError  # takes half a second, which many commands save

    return (OSError, BotoCoreError, ClientError)


def require_writable(store: Store) -> None:
    """Write and delete a probe file. If it cannot be deleted, log a warning with the consequences.

    Raises:
        CgdError: the root cannot be written; the text gives the reason and what to check.
    """
    try:
        if not store.may_delete():
            log.warning(
                f"run.root {store.root}: files can be written and not deleted: small parts are not merged, old "
                "checkpoints stay, no student is replaced. Fix: give the right to delete (on S3 s3:DeleteObject)"
            )
    except Exception as error:
        what = "endpoint, bucket and keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)" if store.is_s3 else "directory"
        detail = " ".join(str(error).split())
        raise CgdError(f"run.root {store.root}: cannot be written: {detail}. Fix: check the {what}") from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _last(entry: _Entry) -> str:
    return entry["name"].rstrip("/").rsplit("/", 1)[-1]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
