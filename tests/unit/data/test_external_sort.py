"""Sorted parts: all rows, in order, whatever the size of a run and of a part."""

import hashlib

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cgd_ray.data.external_sort import SortedRows

SCHEMA = pa.schema([("prompt_id", pa.string()), ("text", pa.string())])


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=4), size=st.integers(1, 60))
def test_rows_come_back_once_and_in_order(counts: list[int], size: int) -> None:
    rows = [
        {"prompt_id": hashlib.blake2b(f"{run} {number}".encode(), digest_size=16).hexdigest(), "text": f"{number}"}
        for run, count in enumerate(counts)
        for number in range(count)
    ]
    with SortedRows(SCHEMA) as ordered:
        start = 0
        for count in counts:
            ordered.add(rows[start : start + count])
            start += count
        parts = list(ordered.parts(size))
    found = [row for part in parts for row in part.to_pylist()]
    assert found == sorted(rows, key=lambda row: row["prompt_id"])
    assert all(len(part) <= 3 * size + 20 for part in parts)
