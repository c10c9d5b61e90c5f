import bz2
import gzip
import json
import lzma
import os
import struct
import zipfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from cgd_ray.config.data import ColumnData, HfData, JsonlData, ParquetData
from cgd_ray.config.run import StorageSection
from cgd_ray.data.rows import SourceRow
from cgd_ray.data.skipped import RowError
from cgd_ray.data.sources import check_source, iterate_rows, source_identity
from cgd_ray.errors import ConfigError


def read(data: ColumnData) -> list[SourceRow]:
    return list(iterate_rows(data, StorageSection()))


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def jsonl(path: Path | str, **options: Any) -> JsonlData:
    return JsonlData(type="jsonl", path=str(path), **options)


def error_of(data: ColumnData) -> str:
    with pytest.raises(ConfigError) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_json_lines_give_prompt_reference_and_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "Was ist ½?", "a": "eins\\n#### 1", "n": [1]}\n\n{"q": "x", "a": null}\n', encoding="utf-8")
    rows = read(jsonl(path, prompt_column="q", reference_column="a"))
    assert [(row.prompt, row.reference, row.source) for row in rows] == [
        ("Was ist ½?", "eins\n#### 1", f"{path}:1"),
        ("x", None, f"{path}:3"),
    ]
    assert rows[0].values == {"q": "Was ist ½?", "a": "eins\n#### 1", "n": [1]}
    assert (rows[0].kind, rows[0].novel) == (None, False)


@pytest.mark.parametrize(
    ("value", "reference"), [(3, "3"), (2.5, "2.5"), (-7, "-7"), ("4", "4"), (None, None), (10**20, str(10**20))]
)
def test_numbers_become_references(tmp_path: Path, value: object, reference: str | None) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "x", "a": value}])
    assert read(jsonl(path, reference_column="a"))[0].reference == reference


@pytest.mark.parametrize("value", [True, [1], {"b": 1}, float("nan"), float("inf")])
def test_other_references_are_refused(tmp_path: Path, value: object) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "x", "a": "1"}, {"prompt": "y", "a": value}])
    message = error_of(jsonl(path, reference_column="a"))
    assert message.startswith(f"{path}:2: the reference is")
    assert "data.reference_column" in message


def test_files_of_globs_and_directories_are_read_by_name(tmp_path: Path) -> None:
    write_lines(tmp_path / "d" / "b.jsonl", [{"prompt": "b1"}, {"prompt": "b2"}])
    write_lines(tmp_path / "d" / "a.jsonl", [{"prompt": "a1"}])
    write_lines(tmp_path / "d" / "sub" / "c.jsonl", [{"prompt": "c1"}])
    write_lines(tmp_path / "d" / "_delta" / "x.jsonl", [{"prompt": "no"}])
    write_lines(tmp_path / "d" / "readme.json", [{"prompt": "no"}])
    with gzip.open(tmp_path / "d" / "z.jsonl.gz", "wt") as file:
        file.write('{"prompt": "z1"}\n')
    assert [row.prompt for row in read(jsonl(tmp_path / "d"))] == ["a1", "b1", "b2", "c1", "z1"]
    assert [row.prompt for row in read(jsonl(f"{tmp_path}/d/*.jsonl"))] == ["a1", "b1", "b2"]
    assert [row.prompt for row in read(jsonl(tmp_path / "d" / "readme.json"))] == ["no"]


def test_rows_are_read_lazily(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\nnot json\n')
    rows = iterate_rows(jsonl(path), StorageSection())
    assert next(rows).prompt == "x"
    with pytest.raises(ConfigError, match=r"a\.jsonl:2: not valid JSON"):
        next(rows)


def test_a_missing_file_names_the_key(tmp_path: Path) -> None:
    assert error_of(jsonl(tmp_path / "no.jsonl")).startswith("data.path ")
    assert "no such file" in error_of(jsonl(tmp_path / "no.jsonl"))
    assert "no file there" in error_of(jsonl(f"{tmp_path}/*.jsonl"))
    assert "no file there ends in .jsonl" in error_of(jsonl(tmp_path))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert (
        error_of(jsonl(tmp_path / "a.jsonl")) == f"data.path {tmp_path}/a.jsonl: no rows. Fix: give a source with rows"
    )


def test_a_missing_column_lists_those_that_are_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"question": "x", "answer": "1"}])
    message = error_of(jsonl(path))
    assert message == (f"data.prompt_column 'prompt': no such column in {path}:1. Fix: take one of question, answer")
    assert "data.reference_column 'gold'" in error_of(jsonl(path, prompt_column="question", reference_column="gold"))


@pytest.mark.parametrize(("value", "found"), [(None, "null"), (3, "int 3"), ("  ", "empty"), (["x"], "a list")])
def test_a_prompt_that_is_not_text_names_file_and_row(tmp_path: Path, value: object, found: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "x"}, {"prompt": value}])
    assert error_of(jsonl(path)).startswith(f"{path}:2: the prompt is {found}, not text")


@pytest.mark.parametrize("line", [b"{", b"[1]", b'"text"', b'{"prompt": "\xff"}'])
def test_an_invalid_line_names_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "x"}\n' + line + b"\n")
    assert error_of(jsonl(path)).startswith(f"{path}:2: not ")


def test_a_truncated_archive_is_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"prompt": "x"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in error_of(jsonl(tmp_path / "a.jsonl.gz"))


def parquet(path: Path | str, **options: Any) -> ParquetData:
    return ParquetData(type="parquet", path=str(path), **options)


def test_parquet_rows_come_with_their_text_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": [f"p{i}" for i in range(5000)],
            "gold": list(range(5000)),
            "topic": pa.array(["sums"] * 5000).dictionary_encode(),
            "embedding": [[0.5]] * 5000,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    rows = read(parquet(tmp_path, reference_column="gold", prompt_template="{{ topic }}: {{ prompt }}"))
    assert [row.prompt for row in rows] == table["prompt"].to_pylist()
    assert rows[4999].reference == "4999"
    assert rows[4999].source == f"{tmp_path}/a.parquet:5000"
    assert rows[0].values == {"prompt": "p0", "gold": 0, "topic": "sums"}


def test_parquet_errors_are_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["x"]}), tmp_path / "a.parquet")
    assert "Fix: take one of question" in error_of(parquet(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"prompt": ["x", None]}), tmp_path / "b.parquet")
    assert error_of(parquet(tmp_path / "b.parquet")).startswith(f"{tmp_path}/b.parquet:2: the prompt is null")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "c.parquet")
    assert "no rows" in error_of(parquet(tmp_path / "c.parquet"))
    (tmp_path / "d.parquet").write_text("no parquet at all")
    assert "not a readable Parquet file" in error_of(parquet(tmp_path / "d.parquet"))
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "e.parquet").write_bytes(b"PAR1" + b"\0" * 20 + whole[24:])
    assert "e.parquet" in error_of(parquet(tmp_path / "e.parquet"))


def not_utf_8() -> pa.Table:
    """A table whose second prompt is not UTF-8, as Arrow lets others write it."""
    offsets, octets = pa.py_buffer(struct.pack("<4i", 0, 2, 4, 5)), pa.py_buffer(b"ok\xff\xfex")
    return pa.table({"prompt": pa.Array.from_buffers(pa.string(), 3, [None, offsets, octets])})


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_text_that_is_not_utf_8_is_one_skipped_row(tmp_path: Path, kind: str) -> None:
    pq.write_table(not_utf_8(), tmp_path / "train.parquet")
    data, place = (parquet(tmp_path), "train.parquet:2") if kind == "parquet" else (hub(tmp_path), "train:2")
    skipped: list[RowError] = []
    rows = list(iterate_rows(data, StorageSection(), skipped.append))
    assert [(row.prompt, row.source[-1]) for row in rows] == [("ok", "1"), ("x", "3")]
    assert [error.reason for error in skipped] == ["not UTF-8"]
    assert str(skipped[0]).startswith(f"{tmp_path}/{place}: text that is not UTF-8: ")
    assert error_of(data) == str(skipped[0])


def test_columns_of_the_template_are_read_whatever_their_type(tmp_path: Path) -> None:
    columns = {"prompt": ["x"], "n": [3], "f": pa.array([2.3], pa.float32()), "unused": [[1]]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    for data in (parquet(tmp_path, prompt_template="{{ prompt }}{{ n }}{{ f }}"),):
        assert [row.values for row in read(data)] == [{"prompt": "x", "n": 3, "f": "2.3"}]


def hub(dataset: Path | str, **options: Any) -> HfData:
    return HfData(type="hf", dataset=str(dataset), **options)


def test_a_directory_that_datasets_can_load(tmp_path: Path) -> None:
    write_lines(tmp_path / "d" / "train.jsonl", [{"prompt": "x", "a": 1}, {"prompt": "y", "a": 2}])
    write_lines(tmp_path / "d" / "test.jsonl", [{"prompt": "z", "a": 3}])
    rows = read(hub(tmp_path / "d", reference_column="a"))
    assert [(row.prompt, row.reference, row.source) for row in rows] == [
        ("x", "1", f"{tmp_path}/d/train:1"),
        ("y", "2", f"{tmp_path}/d/train:2"),
    ]
    assert [row.prompt for row in read(hub(tmp_path / "d", split="test"))] == ["z"]


def test_a_data_set_that_was_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"prompt": ["x", "y"]})
    part.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"dev": part}).save_to_disk(str(tmp_path / "many"))
    assert [row.prompt for row in read(hub(tmp_path / "one"))] == ["x", "y"]
    assert [row.prompt for row in read(hub(tmp_path / "many", split="dev"))] == ["x", "y"]
    assert "there is no split 'train'; the splits are dev" in error_of(hub(tmp_path / "many"))


def test_hub_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "d" / "train.jsonl", [{"question": "x"}])
    assert "data.prompt_column 'prompt'" in error_of(hub(tmp_path / "d"))
    assert "check data.dataset" in error_of(hub(tmp_path / "d", split="nosuch"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert error_of(hub("nobody/nothing")).startswith("data.dataset nobody/nothing (train): cannot be loaded")


def test_an_unpinned_hub_data_set_is_shown_with_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"

    def warnings_of(data: HfData) -> list[Any]:
        with capture_logs() as logs:
            check_source(data, StorageSection())
        return [line.get("commit") for line in logs if line["log_level"] == "warning"]

    write_lines(tmp_path / "d" / "train.jsonl", [{"prompt": "x"}])
    assert warnings_of(hub(tmp_path / "d")) == []
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: SimpleNamespace(hash=commit))
    assert warnings_of(hub("org/name")) == warnings_of(hub("org/name", revision="main")) == [commit]
    assert warnings_of(hub("org/name", revision=commit)) == []


def test_identity_follows_the_bytes_and_not_the_clock(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d" / "train.jsonl", [{"prompt": "x"}])
    for data in (jsonl(path), hub(tmp_path / "d")):
        path.write_text('{"prompt": "x"}\n')
        before = source_identity(data, StorageSection())
        stat = path.stat()
        path.touch()
        assert source_identity(data, StorageSection()) == before
        path.write_text('{"prompt": "y"}\n')
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert source_identity(data, StorageSection()) != before


@pytest.mark.parametrize(
    "number", ["3e-06", "1e400", "2.30", "-0.0", "1.7976931348623157e309", "123456789012345678901"]
)
def test_numbers_stay_as_the_file_writes_them(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "x", "a": {number}}}\n')
    assert read(jsonl(tmp_path / "a.jsonl", reference_column="a"))[0].reference == number


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16(), pa.float64()])
def test_numbers_of_parquet_are_those_that_were_written(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = pa.array(np.array([2.3, 0.1, 5.0], kind.to_pandas_dtype()), kind)
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "a": numbers}), tmp_path / "a.parquet")
    found = [Fraction(str(row.reference)) for row in read(parquet(tmp_path, reference_column="a"))]
    assert np.array([float(number) for number in found], kind.to_pandas_dtype()).tolist() == numbers.to_pylist()
    if kind != pa.float16():
        assert found == [Fraction("2.3"), Fraction("0.1"), Fraction(5)]


ROW = b'{"prompt": "x"}\n'
PACKED = {
    ".jsonl": ROW, ".JSONL": ROW, ".ndjson": ROW, ".jsonl.gz": gzip.compress(ROW), ".jsonl.GZ": gzip.compress(ROW),
    ".jsonl.bz2": bz2.compress(ROW), ".jsonl.xz": lzma.compress(ROW),
    ".jsonl.zst": pa.compress(ROW, "zstd", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_files_are_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(PACKED[suffix])
    for path in (tmp_path, tmp_path / f"a{suffix}"):
        assert [row.prompt for row in read(jsonl(path))] == ["x"]
    if suffix not in (".jsonl", ".JSONL", ".ndjson"):
        (tmp_path / f"a{suffix}").write_bytes(PACKED[suffix][:-4])
        assert "cannot be read" in error_of(jsonl(tmp_path))


def test_all_files_of_a_folder_are_read_or_named(tmp_path: Path) -> None:
    for number, (suffix, content) in enumerate(PACKED.items()):
        (tmp_path / f"{number}{suffix}").write_bytes(content)
    (tmp_path / "b.json").write_bytes(ROW)
    (tmp_path / "LICENSE").write_bytes(b"MIT")
    with capture_logs() as said:
        assert len(read(jsonl(tmp_path))) == len(PACKED)
    assert "files of other kinds are skipped" in said[0]["event"]
    assert (said[0]["files"], said[0]["first"]) == (1, f"{tmp_path}/b.json")


@pytest.mark.parametrize(
    ("members", "said"), [(1, None), (2, "an archive of 2 files (0.jsonl, 1.jsonl). Fix: unpack it")]
)
def test_an_archive_of_several_files_is_not_read_in_part(tmp_path: Path, members: int, said: str | None) -> None:
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as archive:
        for number in range(members):
            archive.writestr(f"{number}.jsonl", ROW)
    if said is None:
        assert len(read(jsonl(tmp_path))) == 1
    else:
        assert said in error_of(jsonl(tmp_path))


def test_links_and_names_like_patterns_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "runs [1]" / "d*"
    write_lines(folder / "a.jsonl", [{"prompt": "x"}])
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    (tmp_path / "file.jsonl").symlink_to(folder / "a.jsonl")
    for path in (folder, folder / "a.jsonl", tmp_path / "link", tmp_path / "file.jsonl"):
        assert [row.prompt for row in read(jsonl(path))] == ["x"]


def test_an_array_of_objects_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff[\n{"prompt": "x"},\n{"prompt": "y"}]')
    assert [(row.prompt, row.source[-2:]) for row in read(jsonl(tmp_path / "a.json"))] == [("x", ":1"), ("y", ":2")]


@pytest.mark.parametrize(
    ("line", "said"), [(b"[" * 100_000, "nested too deeply"), (b'{"prompt": ' + b"[" * 100_000, "nested too deeply")]
)
def test_what_is_nested_too_deeply_is_one_line(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(line)
    assert said in error_of(jsonl(tmp_path / "a.jsonl"))


def test_a_saved_data_set_has_its_own_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": ["x"]}, split="test").save_to_disk(str(tmp_path / "one"))
    assert [row.prompt for row in read(hub(tmp_path / "one", split="test"))] == ["x"]
    assert "there is no split 'train'; what was saved is test" in error_of(hub(tmp_path / "one"))


def test_numbers_of_a_saved_data_set_are_those_that_were_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"prompt": datasets.Value("string"), "a": datasets.Value("float32")})
    made = datasets.Dataset.from_dict({"prompt": ["x"], "a": [2.3]}, features=features)
    made.save_to_disk(str(tmp_path / "one"))
    assert [row.reference for row in read(hub(tmp_path / "one", reference_column="a"))] == ["2.3"]


def test_labels_of_a_data_set_come_with_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"prompt": datasets.Value("string"), "a": label})
    made = datasets.Dataset.from_dict({"prompt": ["x", "y", "z", "w"], "a": [0, 1, -1, None]}, features=features)
    made.save_to_disk(str(tmp_path / "one"))
    rows = read(hub(tmp_path / "one", reference_column="a", prompt_template="{{ prompt }} {{ a }}"))
    assert [row.reference for row in rows] == ["neg", "pos", None, None]
    assert [row.values["a"] for row in rows] == ["neg", "pos", None, None]


@pytest.mark.parametrize(
    "text", ["\u200b", "\ufeff \u2060", "\u3164", "\u2800\ufe0f", "\x00", "\u202e\u2066", "\u00a0"]
)
def test_a_prompt_that_shows_nothing_is_blank(tmp_path: Path, text: str) -> None:
    assert "the prompt is empty" in error_of(jsonl(write_lines(tmp_path / "a.jsonl", [{"prompt": text}])))


@pytest.mark.parametrize("text", ["👩\u200d🔬", "x\u200b", "é", "\ue000"])
def test_a_prompt_with_characters_without_width_is_kept(tmp_path: Path, text: str) -> None:
    assert [row.prompt for row in read(jsonl(write_lines(tmp_path / "a.jsonl", [{"prompt": text}])))] == [text]


@pytest.mark.parametrize("before", [b"\n", b" \r\n\t\n", b"\xef\xbb\xbf\n", b"\xef\xbb\xbf"])
def test_an_array_may_stand_behind_blank_lines(tmp_path: Path, before: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(before + b'[\n  {"prompt": "x"},\n  {"prompt": "y"}\n]\n')
    assert [row.prompt for row in read(jsonl(tmp_path / "a.jsonl"))] == ["x", "y"]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_a_reference_of_parquet_that_is_no_number_is_refused(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"prompt": ["x"], "a": pa.array([float("nan")], kind)}), tmp_path / "a.parquet")
    assert "the reference is float nan" in error_of(parquet(tmp_path, reference_column="a"))
