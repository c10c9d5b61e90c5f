"""What goes to a training worker and what comes back. Light to import: the driver needs it, and no DeepSpeed."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from cgd_ray.config.run import StorageSection
from cgd_ray.config.training import TrainingSection
from cgd_ray.errors import CgdError
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import JsonDict
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.progress import Progress

OUTCOME = "outcome.json"
"""What a training that Ray did not start leaves beside its student."""

STUDENT_MARKS = ("manifest.json", OUTCOME)
"""Files beside a student that call it whole."""


class RefusedError(CgdError):
    """Training cannot go on. All ranks raise it together; trying again would end the same."""


class DivergedError(RefusedError):
    """The loss or the gradient is not finite."""


class GpuMemoryError(CgdError):
    """A rank's GPU is full, which a restart would repeat. Raised in that rank alone: the others wait for it."""


@dataclass(frozen=True)
class About:
    """What goes with the weights."""

    card: str
    """Text of the model card."""
    chat_template: str | None
    """None where the student has its own."""
    template_arguments: dict[str, Any]
    """Further arguments of the chat template, which training and evaluation gave."""
    system_prompt: str | None = None
    """The system turn that they gave."""


_PLAIN = ("model", "revision", "seed", "identity", "checkpoints", "name", "figures", "student")


@dataclass(frozen=True)
class RankJob:
    """Everything that a rank needs to know; small, and cheap to send."""

    encoded: Table
    model: str
    revision: str | None
    storage: StorageSection
    training: TrainingSection
    seed: int
    identity: str
    """Fingerprint of all that changes the result."""
    checkpoints: str
    """Folder of this training's checkpoints, relative to the root."""
    name: str
    """The run's, for people."""
    figures: str
    """Folder of TensorBoard's files, relative to the root."""
    student: str
    """Folder of the exported student, relative to the root."""
    about: About
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """CPU threads of this rank; only used on CPU."""

    def to_json(self) -> bytes:
        """All but what `from_json` knows of its surroundings."""
        content = {
            "root": self.encoded.store.root,
            "encoded": self.encoded.fingerprint,
            "storage": self.storage.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "about": asdict(self.about),
            **{name: getattr(self, name) for name in _PLAIN},
        }
        return json.dumps(content, indent=1).encode()

    @staticmethod
    def from_json(content: bytes, device: str, threads: int) -> "RankJob":
        """The job for ranks on this device with so many threads.

        Raises:
            KeyError, ValueError: it is no such job.
        """
        given = json.loads(content)
        storage = StorageSection.model_validate(given["storage"])
        return RankJob(
            encoded=Table(Store(given["root"], storage, patient=True), "encoded", given["encoded"], ENCODED),
            storage=storage,
            training=TrainingSection.model_validate(given["training"]),
            about=About(**given["about"]),
            device=device,
            threads=threads,
            **{name: given[name] for name in _PLAIN},
        )


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
    mfu: float | None
    """Model FLOPs utilisation: what the step asks for by its mathematics, over what the devices could do in its time;
    None where the device's peak is not known."""
    peak_memory: int
    """Bytes: most that PyTorch ever had allocated on this rank's GPU, or that this process ever had on CPU."""

    def figures(self) -> dict[str, float]:
        """By the names that trackers show; an optional one is left out where there is none."""
        optional = {"validation_loss": self.progress.validation_loss, "mfu": self.mfu}
        return {
            "loss": self.progress.loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "supervised_tokens_per_second": self.supervised_tokens / self.seconds,
            "tokens_per_second": self.total_tokens / self.seconds,
            "peak_memory_gib": self.peak_memory / 2**30,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def shown(self) -> dict[str, str | float]:
        """The same for a progress line."""
        digits = {"learning_rate": ".2e", "tokens_per_second": ".0f", "supervised_tokens_per_second": ".0f"}
        figures = {name: format(value, digits.get(name, ".4g")) for name, value in self.figures().items()}
        return {"step": f"{self.progress.step}/{self.steps}", **figures}


@dataclass(frozen=True)
class RankOutcome:
    """What a rank ends with; the same on all."""

    progress: Progress
    rows: int
    resumed_from_step: int | None
    exported_step: int

    @staticmethod
    def from_json(content: JsonDict) -> "RankOutcome":
        """What `asdict` made of it, and whatever else stands there."""
        fields = ("rows", "resumed_from_step", "exported_step")
        return RankOutcome(Progress.from_json(content["progress"]), **{name: content[name] for name in fields})
