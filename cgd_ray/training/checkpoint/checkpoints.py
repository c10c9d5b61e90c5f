"""Checkpoints of optimiser steps: written beside the training, whole or not at all, readable in any layout.

`FOLDER/step-NNNNNNNN/WRITERS/` holds what torch's distributed checkpointing writes. `progress.json` beside it comes
last and names it: without it there is no checkpoint. Each start of the ranks writes under a name of its own, never into
what others, of another layout perhaps, have written or are writing.
"""

import json
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import JsonDict
from cgd_ray.training.checkpoint.files import RangeReader, StoreWriter
from cgd_ray.training.checkpoint.zero_state import STATES, StateShard, begin_at, refresh_weights, shards_of
from cgd_ray.training.distributed import broadcast_from_rank0, host_group
from cgd_ray.training.job import RefusedError
from cgd_ray.training.progress import Progress

_PROGRESS, _WRITERS = "progress.json", "writers"


class Checkpoints:
    """The checkpoints of one training. Every method is called by all ranks together."""

    def __init__(self, store: Store, folder: str, keep: int, *, keep_best: bool = False) -> None:
        """They lie in a folder of the store; the `keep` newest stay, and with `keep_best` that of `best_step`."""
        self._store = store
        self._folder = folder
        self._keep = keep
        self._keep_best = keep_best
        # Of its own, and on the host: it works while the training's group does.
        self._group = host_group()
        self._writers = broadcast_from_rank0(secrets.token_hex(8), self._group)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, engine: DeepSpeedEngine, progress: Progress) -> None:
        """Copy this rank's shards to the host and write them while training goes on, after the save before.

        Raises:
            RefusedError: the disk has no room for it.
            Exception: the save before failed.
        """
        self.wait()
        # In stage 0 every rank has everything, and each writes a share of it.
        copies = dist.get_world_size() if engine.zero_optimization_stage() == 0 else 1
        shards = shards_of(engine)
        self._require_room(sum(shard.length for shard in shards.values()) * torch.float32.itemsize / copies)
        held = {name: _Held.on_host(shard) for name, shard in shards.items()}
        self._writing = self._writer.submit(self._write, held, progress)

    def wait(self) -> None:
        """Until the last save is whole.

        Raises:
            Exception: it failed.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def restore(self, engine: DeepSpeedEngine) -> Progress:
        """Put the engine back to the newest whole checkpoint; without one nothing changes, and step 0 is returned."""
        found = broadcast_from_rank0(self._newest() if dist.get_rank() == 0 else None, self._group)
        if found is None:
            return Progress()
        begin_at(engine, found.step)
        self._load(engine, found.step, tuple(STATES))
        return found

    def take_weights(self, engine: DeepSpeedEngine, step: int) -> None:
        """Give the engine the weights of the whole checkpoint of that step, for export: its moments stay."""
        self._load(engine, step, STATES[:1])

    def _load(self, engine: DeepSpeedEngine, step: int, states: tuple[str, ...]) -> None:
        marks = self._marks(self._place(step)) if dist.get_rank() == 0 else {}
        reader = RangeReader(self._store, f"{self._place(step)}/{broadcast_from_rank0(marks, self._group)[_WRITERS]}")
        shards = shards_of(engine)
        held = {name: _Held(shard) for name, shard in shards.items() if name.split("/", 1)[0] in states}
        load(held, storage_reader=reader, planner=_LoadPlanner(), process_group=self._group)
        refresh_weights(engine)

    def _require_room(self, share: float) -> None:
        """All ranks agree: torch reports a disk that fills up as a wrong position in a file, and not on all of them."""
        if self._store.is_s3:
            return
        folder = Path(self._store.path(self._folder))
        folder.mkdir(parents=True, exist_ok=True)
        needed = torch.tensor(share)
        free = torch.tensor(float(shutil.disk_usage(folder).free))
        dist.all_reduce(needed, group=self._group)
        dist.all_reduce(free, dist.ReduceOp.MIN, group=self._group)
        if free < needed:
            room, wanted = (f"{size / 2**20:.0f} MiB" for size in (free, needed))
            raise RefusedError(
                f"{folder}: {room} are free, and a checkpoint takes {wanted}. Fix: make room, or lower "
                "training.keep_checkpoints"
            )

    def _write(self, shards: "dict[str, _Held]", progress: Progress) -> None:
        place = self._place(progress.step)
        writer = StoreWriter(self._store, f"{place}/{self._writers}")
        planner = _SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        save(shards, storage_writer=writer, planner=planner, process_group=self._group)
        if dist.get_rank() == 0:
            marks = {_WRITERS: self._writers, "progress": asdict(progress)}
            self._store.write(f"{place}/{_PROGRESS}", json.dumps(marks, indent=1).encode())
            self._forget_others(place)
            self._forget_old(self._place(progress.best_step) if self._keep_best else "")

    def _place(self, step: int) -> str:
        return f"{self._folder}/step-{step:08d}"

    def _newest(self) -> Progress | None:
        whole = self._whole()
        return Progress.from_json(self._marks(f"{self._folder}/{whole[-1]}")["progress"]) if whole else None

    def _marks(self, place: str) -> JsonDict:
        marks: JsonDict = json.loads(self._store.read(f"{place}/{_PROGRESS}"))
        return marks

    def _whole(self) -> list[str]:
        names = [name for name in self._store.folders(self._folder) if name.startswith("step-")]
        return [name for name in names if self._store.exists(f"{self._folder}/{name}/{_PROGRESS}")]

    def _forget_others(self, place: str) -> None:
        """Remove what writers before these, who were killed, left of the same step."""
        for name in self._store.folders(place):
            if name != self._writers:
                self._store.discard(f"{place}/{name}")

    def _forget_old(self, best: str) -> None:
        """Remove what is older than those to keep, with what a kill left half written among it."""
        oldest = self._whole()[-self._keep :][0]
        older = [name for name in self._store.folders(self._folder) if name.startswith("step-") and name < oldest]
        for place in (f"{self._folder}/{name}" for name in older):
            # What says that it is whole goes first.
            if place != best and self._store.discard(f"{place}/{_PROGRESS}"):
                self._store.discard(place)


@dataclass(frozen=True)
class _Held:
    """A shard in the form of torch's distributed checkpointing."""

    shard: StateShard

    @staticmethod
    def on_host(shard: StateShard) -> "_Held":
        return _Held(replace(shard, tensor=shard.tensor.detach().to("cpu", copy=True)))

    @property
    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([self.shard.start]), torch.Size([self.shard.length]))

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        data = TensorWriteData(self._chunk, TensorProperties(dtype=torch.float32), torch.Size([self.shard.whole]))
        return [WriteItem(MetadataIndex(name, self._chunk.offsets), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> Sequence[ChunkStorageMetadata]:
        return [self._chunk]


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        held: _Held = self.state_dict[index.fqn]
        return held.shard.tensor


class _LoadPlanner(DefaultLoadPlanner):
    """Takes the state as it is; torch's own would put None in the place of what it does not know."""

    def set_up_planner(
        self, state_dict: dict[str, "_Held"], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.flatten_state_dict = False
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        held: _Held = self.state_dict[index.fqn]
        return held.shard.tensor
