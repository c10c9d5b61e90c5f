"""What goes to a training worker and what comes back. Light to import: the driver needs it, and no DeepSpeed."""

from dataclasses import dataclass
from typing import Any

from cgd_ray.config.run import StorageSection
from cgd_ray.config.training import TrainingSection
from cgd_ray.errors import CgdError
from cgd_ray.storage.tables import Table
from cgd_ray.training.progress import Progress


class RefusedError(CgdError):
    """Training cannot go on. All ranks raise it together; trying again would end the same."""


class DivergedError(RefusedError):
    """The loss or the gradient is not finite."""


@dataclass(frozen=True)
class About:
    """What goes with the weights."""

    card: str
    """Text of the model card."""
    template_arguments: dict[str, Any]
    """Further arguments of the chat template, which training and evaluation gave."""


@dataclass(frozen=True)
class RankJob:
    """Everything that a rank needs to know; small, and cheap to send."""

    encoded: Table
    model: str
    revision: str | None
    storage: StorageSection
    training: TrainingSection
    seed: int
    checkpoints: str
    """Folder of this training's checkpoints, relative to the root."""
    student: str
    """Folder of the exported student, relative to the root."""
    about: About
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """CPU threads of this rank; only used on CPU."""


@dataclass(frozen=True)
class StepReport:
    """One optimiser step, as every rank reports it."""

    progress: Progress
    steps: int
    learning_rate: float
    gradient_norm: float
    seconds: float
    supervised_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class RankOutcome:
    """What a rank ends with; the same on all."""

    progress: Progress
    rows: int
    resumed_from_step: int | None
    exported_step: int
