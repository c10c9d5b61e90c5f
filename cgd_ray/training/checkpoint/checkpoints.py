"""Checkpoints of optimiser steps: written during training, complete or absent, readable in any layout.

`FOLDER/step-NNNNNNNN/WRITERS/` holds the output of torch's distributed checkpointing. `progress.json` beside it is
written last and names it: without this file there is no checkpoint. Each start of the ranks writes under a new name,
never into that of other writers, which may have another layout or still be running.
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
    """The checkpoints of one training. All ranks call every method together."""

    def __init__(self, store: Store, folder: str, keep: int, *, keep_best: bool = False) -> None:
        """Keep checkpoints in a folder of the store: the `keep` newest, and with `keep_best` that of `best_step`."""
        self._store = store
        self._folder = folder
        self._keep = keep
        self._keep_best = keep_best
        # A separate group, on the host: it communicates while the training's group does.
        self._group = host_group()
        self._writers = broadcast_from_rank0(secrets.token_hex(8), self._group)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, engine: DeepSpeedEngine, progress: Progress) -> None:
        """Copy this rank's shards to the host and write them while training continues, after the previous save.

        Raises:
            RefusedError: the disk has too little space.
            Exception: the previous save failed.
        """
        self.wait()
        # In stage 0 every rank holds all states, and writes a share of them.
        copies = dist.get_world_size() if engine.zero_optimization_stage() == 0 else 1
        shards = shards_of(engine)
        self._require_room(sum(shard.length for shard in shards.values()) * torch.float32.itemsize / copies)
        held = {name: _Held.on_host(shard) for name, shard in shards.items()}
        self._writing = self._writer.submit(self._write, held, progress)

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
            Exception: the save failed.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def restore(self, engine: DeepSpeedEngine) -> Progress:
        """Restore the newest complete checkpoint; without one, leave the engine unchanged and return step 0."""
        found = broadcast_from_rank0(self._newest() if dist.get_rank() == 0 else None, self._group)
        if found is None:
            return Progress()
        begin_at(engine, found.step)
        self._load(engine, found.step, tuple(STATES))
        return found

    def take_weights(self, engine: DeepSpeedEngine, step: int) -> None:
        """Load the weights of that step's complete checkpoint for export; the engine's moments are unchanged."""
        self._load(engine, step, STATES[:1])

    def _load(self, engine: DeepSpeedEngine, step: int, states: tuple[str, ...]) -> None:
        marks = self._marks(self._place(step)) if dist.get_rank() == 0 else {}
        reader = RangeReader(self._store, f"{self._place(step)}/{broadcast_from_rank0(marks, self._group)[_WRITERS]}")
        shards = shards_of(engine)
        held = {name: _Held(shard) for name, shard in shards.items() if name.split("/", 1)[0] in states}
        load(held, storage_reader=reader, planner=_LoadPlanner(), process_group=self._group)
        refresh_weights(engine)

    def _require_room(self, share: float) -> None:
        """Refuse on all ranks if space is short: torch reports a full disk as a wrong file position, on some only."""
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
        """Remove leftovers of the same step by earlier writers that were killed."""
        for name in self._store.folders(place):
            if name != self._writers:
                self._store.discard(f"{place}/{name}")

    def _forget_old(self, best: str) -> None:
        """Remove steps older than those to keep, including partial writes of killed writers."""
        oldest = self._whole()[-self._keep :][0]
        older = [name for name in self._store.folders(self._folder) if name.startswith("step-") and name < oldest]
        for place in (f"{self._folder}/{name}" for name in older):
            # Delete the completeness mark first.
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
    """Uses the state as it is; torch's own planner would replace unknown types with None."""

    def set_up_planner(
        self, state_dict: dict[str, "_Held"], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.flatten_state_dict = False
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        held: _Held = self.state_dict[index.fqn]
        return held.shard.tensor
