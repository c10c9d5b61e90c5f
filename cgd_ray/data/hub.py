"""Rows of Hugging Face data sets: from the hub, or from a directory that `datasets` can load."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from cgd_ray.config.data import HfData
from cgd_ray.config.run import StorageSection
from cgd_ray.data.files import find_files
from cgd_ray.data.rows import Located, as_shown, decoded_rows, require_columns, wanted_columns
from cgd_ray.data.skipped import OnSkip
from cgd_ray.errors import ConfigError
from cgd_ray.prompts.templates import template_columns

_BATCH_ROWS = 1024


def hub_rows(data: HfData, on_skip: OnSkip) -> Iterator[Located]:
    """Yield DATASET/SPLIT:ROW and the columns of each row.

    Reads a local directory directly: `datasets` would keep a copy in its cache and not renew it when the directory
    changes within the same second. A hub data set is read from that cache.

    Labels come with their names. Rows with text that is not UTF-8 are skipped.

    Raises:
        ConfigError: the data set cannot be loaded, or lacks a column.
    """
    wanted = wanted_columns(data) | template_columns(data.prompt_template, "data.prompt_template")
    with _reporting(data):
        rows = _load(data)
        if rows.column_names is not None:
            require_columns(list(rows.column_names), data, data.dataset)
        name, number, features = f"{data.dataset}/{data.split}", 1, rows.features or {}
        # Take values as stored: images and recordings that the recipe does not use are not decoded.
        for batch in rows.with_format("arrow").iter(_BATCH_ROWS):
            read = batch.select([column for column in batch.column_names if column in wanted])
            for source, values in decoded_rows(read, name, number, on_skip):
                yield source, {column: _named(value, features.get(column)) for column, value in values.items()}
            number += batch.num_rows


def _named(value: object, feature: object) -> object:
    """Return a label's name, or a number as it was written; other values as they are."""
    if isinstance(feature, datasets.ClassLabel):
        is_known = isinstance(value, int) and 0 <= value < feature.num_classes
        return feature.int2str(value) if is_known else None  # -1 and null: there is no label
    return as_shown(value, str(getattr(feature, "dtype", "")))


def hub_identity(data: HfData) -> object:
    """Content digests of a local directory's files, or the hub's commit.

    Raises:
        ConfigError: the data set cannot be found.
    """
    if Path(data.dataset).is_dir():
        return find_files(data.dataset, ("",), StorageSection()).identity()
    with _reporting(data):
        return str(_builder(data).hash)


def _load(data: HfData) -> Any:
    folder = Path(data.dataset)
    if (folder / "state.json").is_file():
        saved = datasets.load_from_disk(data.dataset)
        name = str(saved.split) if saved.split is not None else "train"
        if data.split != name:
            raise ValueError(f"there is no split {data.split!r}; what was saved is {name}")
        return saved
    if (folder / "dataset_dict.json").is_file():
        parts = datasets.load_from_disk(data.dataset)
        if data.split not in parts:
            raise ValueError(f"there is no split {data.split!r}; the splits are {', '.join(parts)}")
        return parts[data.split]
    builder = _builder(data)
    if folder.is_dir():
        return builder.as_streaming_dataset(split=data.split)
    builder.download_and_prepare()
    return builder.as_dataset(split=data.split)


def _builder(data: HfData) -> Any:
    return datasets.load_dataset_builder(data.dataset, name=data.subset, revision=data.revision)


@contextmanager
def _reporting(data: HfData) -> Iterator[None]:
    try:
        yield
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(
            f"data.dataset {data.dataset} ({data.split}): cannot be loaded: {detail}. Fix: check data.dataset, "
            "data.subset, data.split and data.revision"
        ) from error
