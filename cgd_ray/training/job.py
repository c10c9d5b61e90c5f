"""Input and output of a training worker. Light to import: the driver needs it, but no DeepSpeed."""

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
"""File that a training not started by Ray writes beside its student."""

STUDENT_MARKS = ("manifest.json", OUTCOME)
"""Files beside a student that mark it as complete."""


class RefusedError(CgdError):
    """Training cannot continue. All ranks raise it together; a retry would fail the same way."""


class DivergedError(RefusedError):
    """The loss or the gradient is not finite."""


class GpuMemoryError(CgdError):
    """A rank's GPU is full; a restart would fail the same way. Raised on that rank only: the others wait for it."""


@dataclass(frozen=True)
class About:
    """Model card and chat settings that are exported with the weights."""

    card: str
    """Text of the model card."""
    chat_template: str | None
    """None if the student has its own."""
    template_arguments: dict[str, Any]
    """Further arguments of the chat template in training and evaluation."""
    system_prompt: str | None = None
    """System turn in training and evaluation."""


_PLAIN = ("model", "revision", "seed", "identity", "checkpoints", "name", "figures", "student")


@dataclass(frozen=True)
class RankJob:
    """All input of a rank; small, and cheap to send."""

    encoded: Table
    model: str
    revision: str | None
    storage: StorageSection
    training: TrainingSection
    seed: int
    identity: str
    """Fingerprint of everything that changes the result."""
    checkpoints: str
    """Folder of this training's checkpoints, relative to the root."""
    name: str
    """Name of the run."""
    figures: str
    """Folder of TensorBoard's files, relative to the root."""
    student: str
    """Folder of the exported student, relative to the root."""
    about: About
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """CPU threads of this rank."""

    def to_json(self) -> bytes:
        """Serialize the job without device and threads, which `from_json` takes as arguments."""
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
        """Return the job for ranks on this device with this number of threads.

        Raises:
            KeyError, ValueError: the content is not such a job.
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
    """Model FLOPs utilisation: the step's FLOPs by the model's mathematics, over the devices' peak FLOPs in its time;
    None if either is unknown."""
    peak_memory: int
    """Peak bytes since the start: allocated by PyTorch on this rank's GPU, or resident in this process on CPU."""

    def figures(self) -> dict[str, float]:
        """Return the figures by the names that trackers show, without optional ones that are None."""
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
        """Return the figures formatted for a progress line."""
        digits = {"learning_rate": ".2e", "tokens_per_second": ".0f", "supervised_tokens_per_second": ".0f"}
        figures = {name: format(value, digits.get(name, ".4g")) for name, value in self.figures().items()}
        return {"step": f"{self.progress.step}/{self.steps}", **figures}


@dataclass(frozen=True)
class RankOutcome:
    """Result of a rank; the same on all ranks."""

    progress: Progress
    rows: int
    resumed_from_step: int | None
    exported_step: int

    @staticmethod
    def from_json(content: JsonDict) -> "RankOutcome":
        """Restore the outcome from the output of `asdict`; other keys are ignored."""
        fields = ("rows", "resumed_from_step", "exported_step")
        return RankOutcome(Progress.from_json(content["progress"]), **{name: content[name] for name in fields})
