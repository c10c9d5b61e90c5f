"""The files of `data.path`, and the identity of their content."""

import glob
import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import structlog
from botocore.exceptions import BotoCoreError, ClientError

from cgd_ray.config.run import StorageSection
from cgd_ray.errors import ConfigError
from cgd_ray.storage.filesystem import open_filesystem

log = structlog.get_logger(__name__)
_CHUNK = 2**20
_DATA = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip")
_UNREADABLE = (
    OSError, EOFError, BotoCoreError, ClientError, pa.ArrowException, lzma.LZMAError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class SourceFiles:
    """Files of one source, in the order in which they are read."""

    fs: Any
    paths: list[str]

    def name(self, path: str) -> str:
        """The path as the user writes it."""
        return f"s3://{path}" if self.is_s3 else path

    @property
    def is_s3(self) -> bool:
        """Whether the files are in a bucket."""
        return "s3" in self.fs.protocol

    def identity(self) -> list[list[str | int]]:
        """Name and content of each file, for fingerprints: SHA-256 of local bytes, entity tag and size on S3.

        Raises:
            ConfigError: a file cannot be read.
        """
        with reporting("data.path"):
            return [[self.name(path), *self._content(path)] for path in self.paths]

    def _content(self, path: str) -> list[str | int]:
        if self.is_s3:
            info = self.fs.info(path)
            return [str(info["ETag"]).strip('"'), int(info["size"])]
        digest = hashlib.sha256()
        with self.fs.open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return [digest.hexdigest()]


def find_files(path: str, suffixes: tuple[str, ...], storage: StorageSection) -> SourceFiles:
    """The file, the files that match a glob, or those below a directory that end in one of the suffixes, sorted.

    In a directory, names that begin with a dot or an underscore are ignored: writers use them for their own files.

    Raises:
        ConfigError: no file is found, or the place cannot be reached.
    """
    fs = open_filesystem(path, storage)
    with reporting(f"data.path {path}"):
        fs.invalidate_cache()  # s3fs caches listings
        base = str(fs.unstrip_protocol(path)).partition("://")[2].rstrip("/")
        if fs.isfile(path):
            return SourceFiles(fs, [base])
        if fs.isdir(path):  # also a directory whose name looks like a glob
            there = [name for name in fs.find(path) if not _is_private(name, base)]
            found = [name for name in there if name.lower().endswith(suffixes)]
            _say_left_out(path, sorted(set(there) - set(found)))
        elif glob.has_magic(path):
            found = [name for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"]
        else:
            raise ConfigError(f"data.path {path}: no such file or directory. Fix: correct the path")
    if not found:
        raise ConfigError(f"data.path {path}: no file there ends in {' or '.join(suffixes)}. Fix: correct the path")
    return SourceFiles(fs, sorted(found))


def _say_left_out(path: str, names: list[str]) -> None:
    """Log files that look like data but are of another kind."""
    if data := [name for name in names if name.lower().endswith(_DATA)]:
        log.warning(f"data.path {path}: files of other kinds are skipped", files=len(data), first=data[0])


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Turn errors of file systems into one line for the user.

    Raises:
        ConfigError: the block raised an error of the file system or of the S3 client.
    """
    try:
        yield
    except _UNREADABLE as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what}: cannot be read: {detail}") from error


def _is_private(name: str, base: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.removeprefix(base).split("/"))
