"""The encoded table by row number, in one file per node that all its ranks read."""

import os
import secrets
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist

from cgd_ray.storage.fingerprint import derived_seed
from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.packing import Ids
from cgd_ray.training.distributed import broadcast_from_rank0
from cgd_ray.training.scratch import encoded_file, remove_leftovers


class EncodedRows:
    """Rows of the table `ENCODED` in key order. Ids stay in Arrow (4 bytes per token) until they are requested."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @staticmethod
    def mapped(file: Path) -> "EncodedRows":
        """Map a file of `write_local` in pages that processes share; the file may be deleted afterwards."""
        return EncodedRows(pa.ipc.open_file(pa.memory_map(str(file))).read_all())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row."""
        lengths = pc.list_value_length(self._table["input_ids"]).to_numpy()
        return np.asarray(lengths, dtype=np.int64)

    @cached_property
    def supervised(self) -> npt.NDArray[np.int64]:
        """[rows] supervised tokens of each row."""
        return self.lengths - np.asarray(self._table["target_start"].to_numpy(), dtype=np.int64)

    def apart(self, fraction: float) -> tuple[Ids, Ids]:
        """Return the numbers of training rows, and of validation rows: those of a share of prompts chosen by hash."""
        if not fraction:
            return np.arange(len(self)), np.arange(0)
        prompts = (prompt for part in self._table["prompt_id"].chunks for prompt in part.to_pylist())
        hashes = (derived_seed(0, "validation", prompt) for prompt in prompts)
        aside = np.fromiter((position < fraction * 2**31 for position in hashes), dtype=bool)
        return np.flatnonzero(~aside), np.flatnonzero(aside)

    def row(self, number: int) -> tuple[Ids, int]:
        """Return the row's ids and the index at which its target starts."""
        ids = np.asarray(self._table["input_ids"][number].values.to_numpy(), dtype=np.int64)
        return ids, int(self._table["target_start"][number].as_py())

    def key(self, number: int) -> str:
        """Return the row's key as shown in messages."""
        return f"{self._table['prompt_id'][number].as_py()}/{self._table['sample'][number].as_py()}"


def write_local(table: Table, file: Path) -> None:
    """Copy an encoded table, part by part, into a file that can be mapped into memory."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for part in table.batches():  # names of parts are in key order
            writer.write_table(part.drop_columns("part"))


def open_on_node(table: Table, group: dist.ProcessGroup) -> EncodedRows:
    """Open the rows of an encoded table. All ranks call it together, with a group of `host_group`.

    One copy per node: millions of rows take tens of gigabytes, and a node has eight ranks.
    """
    file = encoded_file(broadcast_from_rank0(secrets.token_hex(8), group))
    is_first = os.environ["LOCAL_RANK"] == "0"
    try:
        if is_first:
            remove_leftovers()
            write_local(table, file)
        dist.barrier(group)
        rows = EncodedRows.mapped(file)
        dist.barrier(group)
    finally:
        if is_first:
            file.unlink(missing_ok=True)  # existing mappings stay valid
    return rows
