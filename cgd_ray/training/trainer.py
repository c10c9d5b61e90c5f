"""Training on Ray: from curated examples to the exported student, resumable by the same command."""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import ray.exceptions
import ray.train
import structlog
from ray.actor import ActorHandle
from ray.train.torch import TorchConfig, TorchTrainer
from transformers import AutoTokenizer

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import CgdError
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.runtime.waiting import interruptibly
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.tables import Table
from cgd_ray.training.card import model_card, training_seed
from cgd_ray.training.encode import ChatEncoder
from cgd_ray.training.encode_table import EncodedExamples, Encoding, encode_examples
from cgd_ray.training.job import About, RankJob, RankOutcome
from cgd_ray.training.ray_worker import Refused, train_on_ray
from cgd_ray.training.resources import WorkerResources, check_room, pyarrow_filesystem, worker_resources
from cgd_ray.training.steps import shown_steps

log = structlog.get_logger(__name__)

# Settings that change the trained weights; the others (workers, ZeRO stage, packing, ...) change where and how fast.
_RESULT_SETTINGS = {
    "epochs", "learning_rate", "batch_size", "schedule", "warmup_fraction", "weight_decay", "gradient_clipping",
    "precision", "validation_fraction", "export", "lora",
}  # fmt: skip


@dataclass(frozen=True)
class TrainingResult:
    """What training ended with. Counts and seconds are over all interruptions."""

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
    """Mean loss per supervised token of the rows set aside, at the exported step; None where there are none."""
    exported_step: int
    """The optimiser step whose weights the student has."""
    dropped: dict[str, int]
    """Rows left out, by reason."""
    reused: bool
    """Whether the student was there already and nothing was trained."""
    resumed_from_step: int | None


def run_training(
    recipe: Recipe,
    store: Store,
    examples: Table,
    student_path: str,
    student_identity: str,
    *,
    may_train: bool = True,
) -> TrainingResult:
    """Train the student on the examples and export it to `runs/NAME/student`.

    The same command continues from the last checkpoint, and does nothing where the student is there. A setting that
    changes the result starts afresh, with checkpoints of its own; its student takes the place of the run's earlier one.

    Args:
        recipe: the whole recipe; `student`, `training`, `run.seed` and `storage` matter here.
        store: the root.
        examples: curated rows.
        student_path: directory with the student on this node, for its tokenizer. Workers bring the model to their own
            nodes.
        student_identity: who the student is, as `cgd_ray.storage.models` says.
        may_train: else the student of these very settings must be there.

    Raises:
        ConfigError: the student has no usable chat template.
        CgdError: no student is there and none may be trained, no rows are left,
            training diverged, or its workers died more than `training.max_failures` times.
    """
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(student_path), recipe.generation.draft.chat_template_kwargs)
    prompts = load_prompts(recipe.generation.prompts)
    encoded = encode_examples(examples, Encoding(recipe.training, training_seed(recipe), prompts, encoder))
    if not encoded.counts.rows:
        raise CgdError(
            f"training: no rows to train on; left out: {encoded.counts.dropped or 'the examples table is empty'}"
        )
    plan = _Plan(recipe, store, encoded, student_identity)
    finished = plan.finished()
    if finished is not None:
        log.info("student is there already, nothing to train", student=plan.student)
        return finished
    if not may_train:
        raise CgdError(f"run {recipe.run.name} has no student of these settings: run jobs/train.py first")
    if store.exists(f"{plan.student}/manifest.json"):
        log.warning("the run's student is of other settings and will be replaced", student=store.url(plan.student))
    outcome = _fit(plan)
    log.info("student exported", student=store.url(plan.student), steps=outcome.progress.step)
    return plan.finish(outcome)


@dataclass(frozen=True)
class _Plan:
    """One training: its identity and its folders."""

    recipe: Recipe
    store: Store
    encoded: EncodedExamples
    student_identity: str

    @property
    def student(self) -> str:
        return f"runs/{self.recipe.run.name}/student"

    @property
    def parent(self) -> str:
        return f"runs/{self.recipe.run.name}/training"

    @property
    def folder(self) -> str:
        return f"{self.parent}/{self.identity}"

    @property
    def content(self) -> dict[str, Any]:
        """What makes this training this training."""
        return {
            "encoded": self.encoded.table.fingerprint,
            "student": self.student_identity,
            "seed": training_seed(self.recipe),
            **self.recipe.training.model_dump(mode="json", include=_RESULT_SETTINGS),
            # Only steps with a checkpoint can be the best.
            "candidates": self.recipe.training.checkpoint_every if self.recipe.training.export == "best" else None,
        }

    @property
    def identity(self) -> str:
        return fingerprint(self.content)

    def finished(self) -> TrainingResult | None:
        """The result of an earlier invocation, if this very training was exported."""
        name = f"{self.student}/manifest.json"
        if not self.store.exists(name):
            return None
        manifest = json.loads(self.store.read(name))
        if manifest["identity"] != self.identity:
            return None
        return replace(TrainingResult(**manifest["result"]), reused=True, resumed_from_step=None)

    def finish(self, outcome: RankOutcome) -> TrainingResult:
        """Write the manifest, last of all: from here on the student counts as complete."""
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
            reused=False,
            resumed_from_step=outcome.resumed_from_step,
        )
        manifest = {"identity": self.identity, "training": self.content, "result": asdict(result)}
        self.store.write(f"{self.student}/manifest.json", json.dumps(manifest, indent=1).encode())
        return result

    def job(self, resources: WorkerResources) -> RankJob:
        return RankJob(
            encoded=self.encoded.table,
            model=self.recipe.student.model,
            revision=self.recipe.student.revision,
            storage=self.recipe.storage,
            training=self.recipe.training,
            seed=training_seed(self.recipe),
            checkpoints=self.folder,
            student=self.student,
            about=About(
                model_card(self.recipe, self.encoded, self.identity), self.recipe.generation.draft.chat_template_kwargs
            ),
            device=resources.device,
            threads=resources.cpus,
        )


def _fit(plan: _Plan) -> RankOutcome:
    try:
        with shown_steps() as board:
            fit = _trainer(plan, board).fit
            # Interrupted, it writes a checkpoint first.
            outcome: RankOutcome | Refused = interruptibly(
                fit, on_interrupt=partial(_stop, board, plan.recipe), grace_seconds=plan.recipe.training.stop_timeout_s
            ).return_value
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        raise CgdError(
            f"training failed: {_cause(error)}; the same command continues from the last checkpoint"
        ) from error
    if isinstance(outcome, Refused):
        raise CgdError(outcome.reason)
    return outcome


def _stop(board: ActorHandle, recipe: Recipe) -> None:
    log.info("waiting for a checkpoint of the next step", at_most_s=recipe.training.stop_timeout_s)
    board.stop.remote()


def _trainer(plan: _Plan, board: ActorHandle) -> TorchTrainer:
    training = plan.recipe.training
    resources = worker_resources(training)
    check_room(training, resources)
    return TorchTrainer(
        partial(train_on_ray, plan.job(resources), board),
        scaling_config=resources.scaling(training),
        torch_config=TorchConfig(backend="nccl" if resources.device == "cuda" else "gloo"),
        run_config=ray.train.RunConfig(
            name=plan.identity,
            storage_path=plan.store.path(plan.parent),
            storage_filesystem=pyarrow_filesystem(plan.store),
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": resources.device}},
        ),
    )


def _cause(error: Exception) -> str:
    """One line of the first worker's failure, or of the controller's (a store that it cannot reach ends its start)."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else ''}"
