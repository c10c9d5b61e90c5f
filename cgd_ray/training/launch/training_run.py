"""One training: its identity, its folders in the store, its result."""

import json
import math
from dataclasses import asdict, dataclass, fields

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import RERUN
from cgd_ray.prompts.chat import template_text
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.runs import JsonDict
from cgd_ray.training.checkpoint.model_card import model_card
from cgd_ray.training.dataset.encode import EncodedExamples
from cgd_ray.training.job import OUTCOME, About, RankJob, RankOutcome

# Settings that change the trained weights, with their names in identities, which stay when keys are renamed. Other
# settings (workers, ZeRO stage, packing, ...) change where and how fast training runs.
_RESULT_SETTINGS = {
    name: name
    for name in (
        "epochs", "learning_rate", "batch_size", "warmup_fraction", "weight_decay", "precision", "validation_fraction",
        "export", "lora",
    )
} | {"lr_scheduler": "schedule", "max_grad_norm": "gradient_clipping"}  # fmt: skip


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training. Counts and seconds are totals across interruptions."""

    student_name: str
    """Folder of the exported student in the store, relative to the root."""
    steps: int
    rows: int
    supervised_tokens: int
    total_tokens: int
    seconds: float
    """Seconds inside optimiser steps: without start-up, checkpoints and export."""
    final_loss: float
    """Mean loss per supervised token of the last step."""
    validation_loss: float | None
    """Mean loss per supervised token of the validation rows, at the exported step; None if there are none."""
    exported_step: int
    """Optimiser step of the student's weights."""
    dropped: dict[str, int]
    """Rows left out, by reason."""

    @staticmethod
    def from_json(content: JsonDict) -> "TrainingResult":
        """Restore the result from the output of `asdict`; other keys are ignored."""
        return TrainingResult(**{one.name: content[one.name] for one in fields(TrainingResult)})


@dataclass(frozen=True)
class TrainedStudent:
    """Result of one invocation."""

    result: TrainingResult
    reused: bool
    """Whether the student already existed and nothing was trained."""
    resumed_from_step: int | None


@dataclass(frozen=True)
class TrainingRun:
    """One training: its identity and its folders."""

    run: ResolvedRun
    encoded: EncodedExamples

    @property
    def recipe(self) -> Recipe:
        """Recipe of the run."""
        return self.run.recipe

    @property
    def store(self) -> Store:
        """Store of the run."""
        return self.run.store

    @property
    def student(self) -> str:
        """Folder of the exported student."""
        return f"runs/{self.recipe.run.name}/student"

    @property
    def parent(self) -> str:
        """Folder of the run's trainings."""
        return f"runs/{self.recipe.run.name}/training"

    @property
    def folder(self) -> str:
        """Folder of this training's checkpoints."""
        return f"{self.parent}/{self.identity}"

    @property
    def content(self) -> JsonDict:
        """Everything that distinguishes this training from others."""
        settings = self.recipe.training.model_dump(mode="json", include=set(_RESULT_SETTINGS))
        return {
            "encoded": self.encoded.table.fingerprint,
            "student": self.run.student_identity,
            "seed": self.recipe.training_seed,
            **{_RESULT_SETTINGS[name]: value for name, value in settings.items()},
            # The exported chat template contains it.
            **({"system_prompt": system} if (system := self.recipe.data.system_prompt) else {}),
            # Only steps with a checkpoint can be the best.
            "candidates": self.recipe.training.checkpoint_interval if self.recipe.training.export == "best" else None,
        }

    @property
    def identity(self) -> str:
        """Fingerprint of `content`."""
        return fingerprint(self.content)

    def finished(self) -> TrainedStudent | None:
        """Return the result of an earlier invocation, if it exported this very training."""
        name = f"{self.student}/manifest.json"
        if not self.store.exists(name):
            return None
        manifest = json.loads(self.store.read(name))
        if manifest["identity"] != self.identity:
            return None
        return TrainedStudent(TrainingResult.from_json(manifest["result"]), reused=True, resumed_from_step=None)

    def finish(self, outcome: RankOutcome) -> TrainedStudent:
        """Write the manifest, last of all: from then on the student counts as complete."""
        progress = outcome.progress
        result = TrainingResult(
            student_name=self.student,
            steps=progress.step,
            rows=outcome.rows,
            supervised_tokens=progress.supervised_tokens,
            total_tokens=progress.total_tokens,
            seconds=progress.seconds,
            final_loss=progress.loss,
            validation_loss=progress.best_loss if self.recipe.training.export == "best" else progress.validation_loss,
            exported_step=outcome.exported_step,
            dropped=self.encoded.counts.dropped,
        )
        recorded = asdict(result) | {"resumed_from_step": outcome.resumed_from_step}
        manifest = {"identity": self.identity, "training": self.content, "result": recorded}
        self.store.write(f"{self.student}/manifest.json", json.dumps(manifest, indent=1).encode())
        return TrainedStudent(result, reused=False, resumed_from_step=outcome.resumed_from_step)

    def job(self, device: str, threads: int) -> RankJob:
        """Return the job of the ranks."""
        return RankJob(
            encoded=self.encoded.table,
            model=self.recipe.student.model,
            revision=self.recipe.student.revision,
            storage=self.recipe.storage,
            training=self.recipe.training,
            seed=self.recipe.training_seed,
            identity=self.identity,
            checkpoints=self.folder,
            name=self.recipe.run.name,
            figures=f"runs/{self.recipe.run.name}/tensorboard/{self.identity}",
            student=self.student,
            about=About(
                model_card(self.recipe, self.encoded, self.identity),
                template_text(self.recipe.student.engine.chat_template, "student.engine.chat_template"),
                self.recipe.generation.draft.chat_template_kwargs,
                self.recipe.data.system_prompt,
            ),
            device=device,
            threads=threads,
        )

    def torchrun_outcome(self) -> RankOutcome | None:
        """Return the outcome that torchrun wrote beside its exported student, if it was this training's."""
        name = f"{self.student}/{OUTCOME}"
        found = json.loads(self.store.read(name)) if self.store.exists(name) else {}
        return RankOutcome.from_json(found) if found.get("identity") == self.identity else None

    def ask_for_torchrun(self) -> str:
        """Write the job for `cgd_ray.training.launch.torchrun`, and return a message with its command."""
        name = f"{self.folder}/job.json"
        self.store.write(name, self.job("cpu", threads=1).to_json())
        training, storage = self.recipe.training, self.recipe.storage
        reached = {"AWS_ENDPOINT_URL": storage.endpoint_url, "AWS_DEFAULT_REGION": storage.region}
        variables = "".join(f"{key}={value} " for key, value in reached.items() if value and self.store.is_s3)
        return (
            # `auto` was resolved on this machine, and the ranks may run on others.
            f"rows are ready; training.precision is {training.precision}; train with: {variables}"
            f"torchrun --standalone --nproc-per-node {training.workers} "
            # torchrun forwards SIGTERM, and by default kills the ranks half a minute later.
            f"--shutdown-timeout {math.ceil(training.stop_timeout_s)} "
            f"-m cgd_ray.training.launch.torchrun {self.store.url(name)}; then {RERUN}"
        )
