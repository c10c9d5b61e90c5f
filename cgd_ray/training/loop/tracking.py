"""Log the figures of each step to TensorBoard and MLflow from rank 0. Their failures never stop training."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog
from tensorboardX import SummaryWriter

from cgd_ray.config.training import TrackingSection
from cgd_ray.redaction import redact_tree
from cgd_ray.storage.filesystem import Store, store_errors
from cgd_ray.training.job import RankJob, StepReport

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from mlflow.utils.async_logging.run_operations import RunOperations

log = structlog.get_logger(__name__)
_IDENTITY = "cgd.training"


class Tracker(Protocol):
    """Records the figures of steps."""

    def step(self, step: StepReport) -> None:
        """Record one more step."""

    def flush(self) -> None:
        """Make the recorded steps visible."""

    def close(self) -> None:
        """Finish: no more steps follow."""


class Trackers:
    """The trackers that the recipe enables, on rank 0; none on other ranks."""

    def __init__(self, job: RankJob, first_step: int, *, is_first: bool, is_over: bool = False) -> None:
        """Open the trackers; steps from `first_step` on replace an interrupted run's. If `is_over`, none follow."""
        self._errors = store_errors()
        self._trackers: list[Tracker] = []
        tracking = job.training.tracking
        if is_first and tracking.tensorboard:
            with self._tolerated("TensorBoard"):
                self._trackers.append(_TensorBoard(job, first_step))
        if is_first and tracking.mlflow:
            from mlflow.exceptions import MlflowException

            self._errors = (*self._errors, MlflowException)
            with self._tolerated("MLflow"):
                self._trackers.append(_Mlflow(job, tracking, is_over=is_over))

    def step(self, step: StepReport, *, flush: bool) -> None:
        """Record a step; with `flush`, make it visible at once."""
        for tracker in self._trackers:
            with self._tolerated(type(tracker).__name__.lstrip("_")):
                tracker.step(step)
                if flush:
                    tracker.flush()

    def close(self) -> None:
        """Flush and close all trackers."""
        for tracker in self._trackers:
            with self._tolerated(type(tracker).__name__.lstrip("_")):
                tracker.close()

    @contextlib.contextmanager
    def _tolerated(self, name: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            log.warning(f"{name} did not record this step", error=" ".join(str(error).split()))


class _TensorBoard:
    """Event files beside the run: written in place on a local root, uploaded at each flush on S3."""

    def __init__(self, job: RankJob, first_step: int) -> None:
        self._store: Store = job.encoded.store
        self._folder = job.figures
        self._temporary = tempfile.TemporaryDirectory(prefix="cgd-tensorboard-") if self._store.is_s3 else None
        self._place = self._temporary.name if self._temporary else self._store.path(self._folder)
        # File names hold the second of their start: a resume may start in the same second.
        self._writer = SummaryWriter(self._place, purge_step=first_step, filename_suffix=f".{first_step}")

    def step(self, step: StepReport) -> None:
        for name, value in step.figures().items():
            self._writer.add_scalar(f"train/{name}", value, step.progress.step)

    def flush(self) -> None:
        self._writer.flush()
        if self._temporary:
            self._store.upload(Path(self._place), self._folder)

    def close(self) -> None:
        self._writer.close()
        if self._temporary:
            self._store.upload(Path(self._place), self._folder)
            self._temporary.cleanup()


class _Mlflow:
    """One MLflow run per training across all interruptions; figures are sent in the background."""

    def __init__(self, job: RankJob, tracking: TrackingSection, *, is_over: bool) -> None:
        # The other ranks already wait in the first step: an unreachable server costs a minute, not hours.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.tracking import MlflowClient

        if tracking.mlflow_uri is None:
            # Files need no database package, and a shared root needs no lock; MLflow requires this explicit opt-in.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking.mlflow_uri or f"file://{job.encoded.store.path('mlflow')}")
        self._run = _mlflow_run(self._client, job, tracking.mlflow_experiment)
        self._last: RunOperations | None = None
        self._is_over = is_over

    def step(self, step: StepReport) -> None:
        from mlflow.entities import Metric

        self._is_over = step.progress.step == step.steps
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step.progress.step) for name, value in step.figures().items()]
        self._last = self._client.log_batch(self._run, metrics, synchronous=False)

    def flush(self) -> None:
        """Do nothing: figures are sent in the background."""

    def close(self) -> None:
        if self._last is not None:
            self._last.wait()  # batches are sent in order
        self._client.set_terminated(self._run, "FINISHED" if self._is_over else "KILLED")


def _mlflow_run(client: "MlflowClient", job: RankJob, experiment: str) -> str:
    """Return the id of this training's run; if there is none, create it with the settings as its parameters."""
    known = client.get_experiment_by_name(experiment)
    place = known.experiment_id if known else client.create_experiment(experiment)
    found = client.search_runs([place], f"tags.`{_IDENTITY}` = '{job.identity}'", max_results=1)
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    run = client.create_run(place, run_name=job.name, tags={_IDENTITY: job.identity, "cgd.model": job.model})
    for name, value in job.training.model_dump(mode="json").items():
        client.log_param(run.info.run_id, name, redact_tree(value))
    return str(run.info.run_id)
