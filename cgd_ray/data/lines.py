"""JSON values of text files, one per line or in one array, compressed or not, each with its number."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import IO, Any

import pyarrow as pa

from cgd_ray.data.files import SourceFiles
from cgd_ray.data.skipped import OnSkip, RowError
from cgd_ray.errors import ConfigError

_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
Columns = dict[str, Any]
"""A row's columns by their names."""

LINES = tuple(f"{kind}{packed}" for kind in (".jsonl", ".ndjson") for packed in ("", *_COMPRESSED))
"""Suffixes of files with JSON lines."""


class ShownFloat(float):
    """A JSON number that keeps its written form: 3e-06, and 1e400, which exceeds the range of floats."""

    text: str

    @classmethod
    def of(cls, text: str) -> "ShownFloat":
        """Parse this text as a number."""
        shown = cls(text)
        shown.text = text
        return shown


def json_rows(files: SourceFiles, path: str, on_skip: OnSkip) -> Iterator[tuple[str, Columns]]:
    """Yield FILE:ROW and the object of each row; blank lines are ignored, and rows that are no objects are skipped.

    Raises:
        ConfigError: a file that is one array is not valid JSON, or `on_skip` raises it.
    """
    with _opened(files, path) as file:
        is_first = True
        for number, line in enumerate(file, start=1):
            is_filled = bool(line.strip(b"\xef\xbb\xbf \t\r\n"))
            if is_filled and is_first and _begins_an_array(line):
                yield from _array(files.name(path), line + file.read(), on_skip)
                return
            is_first = is_first and not is_filled
            if is_filled:
                source = f"{files.name(path)}:{number}"
                try:
                    yield source, _object(_parsed(line, source), source)
                except RowError as error:
                    on_skip(error)


def _begins_an_array(line: bytes) -> bool:
    """Whether a first line begins an array, or is one of objects; any other array is a row that is no object."""
    if not line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        return False
    try:
        members: object = json.loads(line)
    except (ValueError, RecursionError):
        return not line.lstrip().startswith(b"[[")
    return isinstance(members, list) and all(isinstance(member, dict) for member in members)


def _array(name: str, content: bytes, on_skip: OnSkip) -> Iterator[tuple[str, Columns]]:
    """The members of a file that is one JSON array."""
    members = _parsed(content, name)
    for number, value in enumerate(members if isinstance(members, list) else [members], start=1):
        try:
            yield f"{name}:{number}", _object(value, f"{name}:{number}")
        except RowError as error:
            on_skip(error)


def _parsed(text: bytes, source: str) -> object:
    try:
        value: object = json.loads(text, parse_float=ShownFloat.of)
    except ValueError as error:  # not JSON, or not UTF-8
        raise RowError(f"{source}: not valid JSON: {error}", source, "not valid JSON") from error
    except RecursionError as error:
        raise RowError(f"{source}: not valid JSON: it is nested too deeply", source, "nested too deeply") from error
    return value


def _object(value: object, source: str) -> Columns:
    if not isinstance(value, dict):
        raise RowError(f"{source}: not a JSON object. Fix: write one object a line", source, "not a JSON object")
    return value


@contextmanager
def _opened(files: SourceFiles, path: str) -> Iterator[IO[bytes]]:
    packed = next((name for suffix, name in _COMPRESSED.items() if path.lower().endswith(suffix)), None)
    is_known = packed in ("gzip", "bz2", "xz")
    with files.fs.open(path, "rb", compression=packed if is_known else None) as file:
        if packed == "zip":
            with zipfile.ZipFile(file) as archive, archive.open(_only_member(archive, files.name(path))) as member:
                yield member
        elif packed == "zstd":
            yield BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), packed))
        else:
            yield file


def _only_member(archive: zipfile.ZipFile, name: str) -> str:
    members = [info.filename for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename]
    if len(members) != 1:
        raise ConfigError(f"{name}: an archive of {len(members)} files ({', '.join(members[:3])}). Fix: unpack it")
    return members[0]
