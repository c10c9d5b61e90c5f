"""The verdict on each answer, kept with the run: what differences between students are computed from."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cgd_ray.errors import CgdError
from cgd_ray.evaluation.questions import QuestionSet
from cgd_ray.evaluation.scores import Graded
from cgd_ray.evaluation.statistics import Verdicts
from cgd_ray.storage.runs import Run

VERDICTS = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("student", pa.string(), nullable=False),  # "base" or "trained"
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("boxed", pa.bool_(), nullable=False),  # correct, and in a box
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),  # of the answer
    ]
)
_FILE = "verdicts.parquet"
_MARKS = ("correct", "boxed", "truncated", "tokens")


def write_verdicts(run: Run, sets: Sequence[QuestionSet], graded: Mapping[str, Mapping[str, Graded]]) -> None:
    """Write `verdicts.parquet` (VERDICTS schema) of the run; `graded` is by student and set."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, VERDICTS, compression="zstd") as writer:
        for one in sets:
            for student, marks in graded.items():
                for sample in range(one.samples):
                    columns = {name: getattr(marks[one.name], name)[sample] for name in _MARKS}
                    named = {"set": one.name, "student": student, "sample": sample}
                    repeated = {name: [value] * len(one.rows) for name, value in named.items()}
                    table = pa.table({**repeated, "prompt_id": one.rows["prompt_id"], **columns})
                    writer.write_table(table.cast(VERDICTS))
    run.store.write(run.path(_FILE), buffer.getvalue())


def read_correct(runs: Mapping[str, Run]) -> dict[str, dict[str, Verdicts]]:
    """Read which questions were answered correctly: by the base student, and by the trained one of each run.

    Args:
        runs: by the name of their trained student; they share the base student and the questions.

    Returns:
        By set and name, `base` first: verdicts of shape (samples, questions), all in one order of the questions.

    Raises:
        CgdError: the runs were evaluated on different questions.
    """
    tables = {name: pq.read_table(io.BytesIO(run.store.read(run.path(_FILE)))) for name, run in runs.items()}
    first = next(iter(tables.values()))
    return {one: _of_set(tables, one) for one in dict.fromkeys(first["set"].to_pylist())}


def _of_set(tables: Mapping[str, pa.Table], one: str) -> dict[str, Verdicts]:
    first = next(iter(tables))
    chosen = {"base": _select(tables[first], one, "base")}
    chosen |= {name: _select(table, one, "trained") for name, table in tables.items()}
    asked = chosen["base"].select(["sample", "prompt_id"])
    for name, table in chosen.items():
        if not table.select(["sample", "prompt_id"]).equals(asked):
            raise CgdError(
                f"{name} was evaluated on other questions of {one} than {first}. Fix: evaluate both with one recipe"
            )
    samples = pc.max(asked["sample"]).as_py() + 1
    return {name: np.array(table["correct"].to_pylist(), bool).reshape(samples, -1) for name, table in chosen.items()}


def _select(verdicts: pa.Table, one: str, student: str) -> pa.Table:
    wanted = pc.and_(pc.equal(verdicts["set"], one), pc.equal(verdicts["student"], student))
    return verdicts.filter(wanted).sort_by([("sample", "ascending"), ("prompt_id", "ascending")]).combine_chunks()
