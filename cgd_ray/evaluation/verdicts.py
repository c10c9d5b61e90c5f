"""The verdict on each answer, kept with the run: what differences between students are computed from."""

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cgd_ray.errors import CgdError
from cgd_ray.evaluation.scores import Graded
from cgd_ray.storage.runs import Run

VERDICTS = pa.schema(
    [
        pa.field("student", pa.string(), nullable=False),  # "base" or "trained"
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("boxed", pa.bool_(), nullable=False),  # correct, and in a box
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),  # of the answer
    ]
)
_FILE = "verdicts.parquet"


def write_verdicts(run: Run, questions: pa.Table, graded: Mapping[str, Graded]) -> None:
    """Write `verdicts.parquet` (VERDICTS schema) of the run: by student, in the order of the questions."""
    tables = []
    for student, marks in graded.items():
        columns = {name: getattr(marks, name) for name in ("correct", "boxed", "truncated", "tokens")}
        named = {"student": [student] * len(questions), "prompt_id": questions["prompt_id"]}
        tables.append(pa.table({**named, **columns}).cast(VERDICTS))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    run.store.write(run.path(_FILE), buffer.getvalue())


def read_correct(runs: Mapping[str, Run]) -> dict[str, np.ndarray]:
    """Read which questions were answered correctly: by the base student, and by the trained one of each run.

    Args:
        runs: by the name of their trained student; they share the base student and the questions.

    Returns:
        Verdicts of shape (questions,) by name, `base` first; all in one order.

    Raises:
        CgdError: the runs were evaluated on different questions.
    """
    verdicts = {name: pq.read_table(io.BytesIO(run.store.read(run.path(_FILE)))) for name, run in runs.items()}
    first = next(iter(verdicts))
    found = {"base": _of(verdicts[first], "base"), **{name: _of(table, "trained") for name, table in verdicts.items()}}
    questions = found["base"]["prompt_id"]
    for name, table in found.items():
        if not table["prompt_id"].equals(questions):
            raise CgdError(f"{name} was evaluated on other questions than {first}. Fix: evaluate both with one recipe")
    return {name: np.array(table["correct"].to_pylist(), bool) for name, table in found.items()}


def _of(verdicts: pa.Table, student: str) -> pa.Table:
    return verdicts.filter(pc.equal(verdicts["student"], student)).sort_by("prompt_id")
