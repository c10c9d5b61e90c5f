"""Training on Ray: from curated examples to the exported student, resumable by the same command."""

from functools import partial

import ray.exceptions
import ray.train
import structlog
from ray.actor import ActorHandle
from ray.train.torch import TorchTrainer

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import RERUN, CgdError, StoppedError
from cgd_ray.runtime.capacity import resources_in_use, wait_for_release
from cgd_ray.runtime.interrupts import interruptibly
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.encode import Encoding, encode_examples
from cgd_ray.training.job import STUDENT_MARKS, GpuMemoryError, RankOutcome
from cgd_ray.training.launch.ray_group import FinalFailures, NodeTorchConfig
from cgd_ray.training.launch.ray_worker import Refused, train_on_ray
from cgd_ray.training.launch.resources import check_room, pyarrow_filesystem, worker_resources
from cgd_ray.training.launch.step_monitor import shown_steps
from cgd_ray.training.launch.training_run import TrainedStudent, TrainingRun

log = structlog.get_logger(__name__)


def run_training(run: ResolvedRun, examples: Table, *, may_train: bool = True) -> TrainedStudent:
    """Train the student on the examples and export it to `runs/NAME/student`.

    The same command continues from the last checkpoint, and does nothing if the student exists. A setting that changes
    the result starts a new training with its own checkpoints; its student replaces the run's earlier one.

    Args:
        run: the resolved run.
        examples: curated rows.
        may_train: if false, the student of these very settings must exist.

    Raises:
        StoppedError: rows are ready for torchrun, if `training.launcher` is `torchrun`.
        CgdError: the student is missing and none may be trained, an earlier one cannot be replaced, no rows are left,
            training diverged, a GPU is full, or workers died too often (`training.max_failures`).
    """
    recipe, plan = run.recipe, encoded_training(run, examples)
    finished = plan.finished()
    if finished is not None:
        log.info("student is there already, nothing to train", student=plan.student)
        return finished
    if not may_train:
        raise CgdError(f"run {recipe.run.name} has no student of these settings. Fix: run jobs/train.py first")
    under_torchrun = recipe.training.launcher == "torchrun"
    if under_torchrun and (outcome := plan.torchrun_outcome()):
        return _finish(plan, outcome)
    _require_replaceable(plan)
    if under_torchrun:
        raise StoppedError(plan.ask_for_torchrun())
    before = resources_in_use()
    result = _finish(plan, _fit(plan))
    wait_for_release(before)  # evaluation's engines need the resources
    return result


def encoded_training(run: ResolvedRun, examples: Table) -> TrainingRun:
    """Return the training of a run on its curated rows, which are encoded if they were not yet.

    Raises:
        CgdError: no rows are left.
    """
    recipe = run.recipe
    encoding = Encoding(recipe.training, recipe.training_seed, run.templates, run.encoder)
    encoded = encode_examples(examples, encoding)
    if not encoded.counts.rows:
        raise CgdError(
            f"training: no rows to train on (skipped: {encoded.counts.dropped or 'the examples table is empty'})"
        )
    return TrainingRun(run, encoded)


def _require_replaceable(plan: TrainingRun) -> None:
    """Refuse a student that cannot be replaced before hours of training, not at export."""
    if not any(plan.store.exists(f"{plan.student}/{name}") for name in STUDENT_MARKS):
        return
    student = plan.store.url(plan.student)
    if not plan.store.may_delete(plan.student):
        raise CgdError(
            f"{student}: is a student of other settings, and the store does not let it be replaced. Fix: give the "
            "right to delete (on S3 s3:DeleteObject), or train under another run.name"
        )
    log.warning("the run's student is of other settings and will be replaced", student=student)


def _finish(plan: TrainingRun, outcome: RankOutcome) -> TrainedStudent:
    log.info("student exported", student=plan.store.url(plan.student), steps=outcome.progress.step)
    return plan.finish(outcome)


def _fit(plan: TrainingRun) -> RankOutcome:
    try:
        with shown_steps() as board:
            fit = _trainer(plan, board).fit
            # On interrupt, it writes a checkpoint first.
            outcome: RankOutcome | Refused = interruptibly(
                fit, on_interrupt=partial(_stop, board, plan.recipe), grace_seconds=plan.recipe.training.stop_timeout_s
            ).return_value
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        if isinstance(final := getattr(error, "controller_failure", None), GpuMemoryError):
            raise final from None
        raise CgdError(
            f"training failed: {_cause(error)}. Fix: mend the cause; {RERUN} from the last checkpoint"
        ) from error
    if isinstance(outcome, Refused):
        raise CgdError(outcome.reason)
    return outcome


def _stop(board: ActorHandle, recipe: Recipe) -> None:
    log.info("waiting for a checkpoint of the next step", at_most_s=recipe.training.stop_timeout_s)
    board.stop.remote()


def _trainer(plan: TrainingRun, board: ActorHandle) -> TorchTrainer:
    training = plan.recipe.training
    resources = worker_resources(training)
    check_room(training, resources, is_next=True)
    return TorchTrainer(
        partial(train_on_ray, plan.job(resources.device, resources.cpus), board),
        scaling_config=resources.scaling(training),
        torch_config=NodeTorchConfig(backend="nccl" if resources.device == "cuda" else "gloo"),
        run_config=ray.train.RunConfig(
            name=plan.identity,
            storage_path=plan.store.path(plan.parent),
            storage_filesystem=pyarrow_filesystem(plan.store),
            callbacks=[FinalFailures()],
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": resources.device}},
        ),
    )


def _cause(error: Exception) -> str:
    """Return one line of the first worker's failure, or of the controller's (an unreachable store fails its start)."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else ''}"
