"""Rows of one optimiser step, shared among workers and packed into forward passes. Deterministic; no torch, no Ray.

Every worker computes the whole plan from the lengths alone, so all run the same number of passes without
communication. If a worker had one pass less, the others would hang in a collective.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from cgd_ray.storage.fingerprint import derived_seed

Ids = npt.NDArray[np.int64]
_LOOKED_AT = 4096  # rows to sample, in whole steps


@dataclass(frozen=True)
class PackedRows:
    """Several rows end to end, in one sequence of T tokens with S supervised ones.

    Attention between rows is cut where positions restart (see `cgd_ray.training.loop.loss`).
    """

    input_ids: Ids
    """[T]"""
    position_ids: Ids
    """[T], from 0 in each row"""
    predicting: Ids
    """[S] positions whose next token is supervised"""
    labels: Ids
    """[S] those next tokens"""

    @property
    def borders(self) -> npt.NDArray[np.int32]:
        """[rows + 1] start of each row, and T, in the type that FlashAttention requires."""
        return np.append(np.flatnonzero(self.position_ids == 0), len(self.position_ids)).astype(np.int32)


def optimiser_steps(rows: int, batch_size: int, epochs: int) -> int:
    """Return the number of optimiser steps; an epoch's last batch may be smaller."""
    return epochs * -(-rows // batch_size)


def batches(rows: int, batch_size: int, epochs: int, seed: int, first_step: int = 0) -> Iterator[Ids]:
    """Yield the row numbers of each optimiser step from `first_step` on; each epoch has its own order."""
    per_epoch = optimiser_steps(rows, batch_size, 1)
    for epoch in range(first_step // per_epoch, epochs):
        order = np.random.default_rng(derived_seed(seed, "epoch", epoch)).permutation(rows)
        first = max(0, first_step - epoch * per_epoch)
        for start in range(first * batch_size, rows, batch_size):
            yield order[start : start + batch_size]


def plan_passes(lengths: Sequence[int], workers: int, capacity: int) -> list[list[tuple[int, ...]]]:
    """Share the rows of one step among workers: result[worker][pass] holds indices into `lengths`.

    The longest rows go first, each to the worker with the fewest tokens so far; a worker's rows are packed by best fit.
    Workers with fewer passes get empty ones at the end, so that all have the same number.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for index in _longest_first(lengths, range(len(lengths))):
        worker = loads.index(min(loads))
        shares[worker].append(index)
        loads[worker] += lengths[index]
    passes = [pack(lengths, share, capacity) for share in shares]
    most = max(len(of_worker) for of_worker in passes)
    return [of_worker + [()] * (most - len(of_worker)) for of_worker in passes]


def pack(lengths: Sequence[int], rows: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """Pack by best-fit decreasing: each row into the fullest pack with room; a row above `capacity` is alone."""
    packs: list[list[int]] = []
    rooms: list[int] = []
    for row in _longest_first(lengths, rows):
        fitting = [place for place, room in enumerate(rooms) if room >= lengths[row]]
        if fitting:
            place = min(fitting, key=lambda candidate: rooms[candidate])
            packs[place].append(row)
            rooms[place] -= lengths[row]
        else:
            packs.append([row])
            rooms.append(capacity - lengths[row])
    return [tuple(members) for members in packs]


def largest_pass(lengths: Ids, supervised: Ids, batch_size: int, workers: int, capacity: int) -> tuple[int, int]:
    """Estimate the most tokens, and the most supervised tokens, of one pass from the first steps of an epoch.

    Args:
        lengths: [rows] tokens of each row.
        supervised: [rows] supervised tokens of each row.
        batch_size: rows per step.
        workers: workers that share a step's rows.
        capacity: tokens per pass; a longer row is a pass of its own.
    """
    tokens = max(capacity, int(lengths.max(initial=0)))
    targets = [1, int(supervised.max(initial=0)), round(tokens * float(supervised.sum()) / max(1, int(lengths.sum())))]
    for batch in islice(batches(len(lengths), batch_size, epochs=1, seed=0), max(1, _LOOKED_AT // batch_size)):
        plan = plan_passes(lengths[batch].tolist(), workers, capacity)
        targets += [int(supervised[batch[list(members)]].sum()) for passes in plan for members in passes]
    return tokens, max(targets)


def join(rows: Sequence[tuple[Ids, int]]) -> PackedRows:
    """Join rows, given as ids and target start, end to end."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    return PackedRows(
        input_ids=np.concatenate([ids for ids, _ in rows]),
        position_ids=np.concatenate([np.arange(len(ids)) for ids, _ in rows]),
        predicting=np.concatenate(
            [np.arange(start - 1, len(ids) - 1) + offset for (ids, start), offset in zip(rows, offsets, strict=False)]
        ),
        labels=np.concatenate([ids[start:] for ids, start in rows]),
    )


def padded(rows: PackedRows, multiple: int) -> PackedRows:
    """Append an unsupervised padding row, so that the number of tokens is a multiple of `multiple`.

    The row is always added: a kernel that is compiled for each kind of pass then gets only one kind.
    """
    more = multiple - len(rows.input_ids) % multiple
    return replace(
        rows,
        input_ids=np.concatenate([rows.input_ids, np.zeros(more, rows.input_ids.dtype)]),
        position_ids=np.concatenate([rows.position_ids, np.arange(more)]),
    )


def padding() -> PackedRows:
    """Return the smallest possible pass, for a worker that has none left; its loss has weight 0."""
    return join([(np.zeros(2, dtype=np.int64), 1)])


def _longest_first(lengths: Sequence[int], rows: Sequence[int]) -> list[int]:
    return sorted(rows, key=lambda row: (-lengths[row], row))
