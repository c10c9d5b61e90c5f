"""Rows of the sources that have columns, read lazily: JSON lines, Parquet, Hugging Face data sets."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from cgd_ray.config.data import ColumnData, HfData, JsonlData, ParquetData
from cgd_ray.config.run import StorageSection
from cgd_ray.data.files import SourceFiles, find_files, reporting
from cgd_ray.data.lines import LINES, json_rows
from cgd_ray.data.rows import (
    Located,
    SourceRow,
    as_shown,
    checked_row,
    decoded_rows,
    require_columns,
    wanted_columns,
)  # fmt: skip
from cgd_ray.data.skipped import OnSkip, RowError, refuse
from cgd_ray.errors import ConfigError
from cgd_ray.prompts.templates import template_columns

log = structlog.get_logger(__name__)
_BATCH_ROWS = 1024
_FIRST_ROWS = 100  # if none of these can be used, assume that no row can


def iterate_rows(data: ColumnData, storage: StorageSection, on_skip: OnSkip = refuse) -> Iterator[SourceRow]:
    """The rows in source order: files by name, rows as stored.

    Raises:
        ConfigError: the source is missing, unreadable or empty; one line that names the key, or file and row.
        RowError: a row does not match the recipe, and `on_skip` raises the error.
    """
    found = False

    def skip(error: RowError) -> None:
        nonlocal found
        found = True
        on_skip(error)

    for source, values in _located_rows(data, storage, skip):
        found = True
        try:
            row = checked_row(values, source, data)
        except RowError as error:
            skip(error)
            continue
        yield row
    if not found:
        raise ConfigError(f"{describe_source(data)}: no rows. Fix: give a source with rows")


def check_source(data: ColumnData, storage: StorageSection) -> None:
    """Read the first usable row of files; of a hub data set, which may be large, only check that it exists.

    Logs a warning for a hub data set that is not pinned, with the commit that this run reads.

    Raises:
        ConfigError: as `iterate_rows` and `source_identity`.
    """
    if isinstance(data, HfData):
        commit = source_identity(data, storage)
        if not Path(data.dataset).is_dir() and data.revision != commit:
            log.warning(
                f"data.dataset {data.dataset}: a later run may read another commit. Fix: set data.revision to this one",
                commit=commit,
            )
    else:
        skipped: list[RowError] = []

        def skip(error: RowError) -> None:
            skipped.append(error)
            if len(skipped) == _FIRST_ROWS:
                raise skipped[0]

        if next(iterate_rows(data, storage, skip), None) is None and skipped:
            raise skipped[0]


def source_identity(data: ColumnData, storage: StorageSection) -> object:
    """Identity of the source's content, as JSON: different content gives a different value.

    Raises:
        ConfigError: the source is missing or unreadable.
    """
    if isinstance(data, HfData):
        # Import here and below: `datasets` takes a second, which other sources save.
        from cgd_ray.data.hub import hub_identity

        return hub_identity(data)
    return _files(data, storage).identity()


def describe_source(data: ColumnData) -> str:
    """The source's key and value, for messages."""
    if isinstance(data, HfData):
        return f"data.dataset {data.dataset} ({data.split})"
    if isinstance(data, JsonlData | ParquetData):
        return f"data.path {data.path}"
    raise TypeError(f"unknown source {type(data).__name__}")


def _located_rows(data: ColumnData, storage: StorageSection, on_skip: OnSkip) -> Iterator[Located]:
    if isinstance(data, HfData):
        from cgd_ray.data.hub import hub_rows

        yield from hub_rows(data, on_skip)
        return
    files = _files(data, storage)
    for path in files.paths:
        with reporting(f"data.path {files.name(path)}"):
            is_parquet = isinstance(data, ParquetData)
            yield from _parquet_rows(files, path, data, on_skip) if is_parquet else json_rows(files, path, on_skip)


def _files(data: ColumnData, storage: StorageSection) -> SourceFiles:
    if isinstance(data, JsonlData):
        return find_files(data.path, LINES, storage)
    if isinstance(data, ParquetData):
        return find_files(data.path, (".parquet",), storage)
    raise TypeError(f"{type(data).__name__} has no files")


def _parquet_rows(files: SourceFiles, path: str, data: ColumnData, on_skip: OnSkip) -> Iterator[Located]:
    name, number = files.name(path), 1
    try:
        with files.fs.open(path, "rb") as handle:
            file = pq.ParquetFile(handle)
            require_columns(file.schema_arrow.names, data, name)
            wanted = wanted_columns(data) | template_columns(data.prompt_template, "data.prompt_template")
            kinds = {field.name: str(field.type) for field in file.schema_arrow if field.name in wanted}
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(kinds)):
                for source, values in decoded_rows(batch, name, number, on_skip):
                    yield source, {column: as_shown(value, kinds[column]) for column, value in values.items()}
                number += batch.num_rows
    except pa.ArrowException as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"data.path {name}: not a readable Parquet file: {detail}") from error
