"""The checkpoint of one optimiser step: DeepSpeed's shards and one small file that says how far training is."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cgd_ray.errors import CgdError

_PROGRESS = "progress.json"
_TAG = "zero"


@dataclass(frozen=True)
class Progress:
    """How far training is, over all interruptions."""

    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    supervised_tokens: int = 0
    total_tokens: int = 0
    loss: float = float("nan")
    """Mean loss per supervised token of the last step."""


@dataclass(frozen=True)
class Layout:
    """What a sharded checkpoint is tied to."""

    workers: int
    zero_stage: int


def save_checkpoint(engine: Any, folder: Path, progress: Progress, layout: Layout) -> None:
    """Write this rank's shards into its folder, and rank 0 the progress beside them. All ranks call it together.

    The ranks' folders, put on top of each other, are the checkpoint.
    """
    engine.save_checkpoint(str(folder), tag=_TAG)
    if dist.get_rank() == 0:
        content = {"progress": asdict(progress), "layout": asdict(layout)}
        (folder / _PROGRESS).write_text(json.dumps(content, indent=1))


def load_checkpoint(engine: Any, folder: Path, layout: Layout) -> Progress:
    """Put the engine back to the checkpoint's step.

    Raises:
        CgdError: it was written with another number of workers or ZeRO stage.
    """
    content = json.loads((folder / _PROGRESS).read_text())
    require_layout(Layout(**content["layout"]), layout, str(folder))
    engine.load_checkpoint(str(folder), tag=_TAG)
    return Progress(**content["progress"])


def require_layout(saved: Layout, wanted: Layout, where: str) -> None:
    """Refuse to continue a sharded checkpoint in another layout.

    Raises:
        CgdError: the two differ; the text names both and the two ways out.
    """
    if saved != wanted:
        raise CgdError(
            f"training.workers={wanted.workers}, training.zero_stage={wanted.zero_stage}: the checkpoints in {where} "
            f"were written with workers={saved.workers}, zero_stage={saved.zero_stage}; set these back to continue, "
            "or delete that folder to start afresh"
        )
