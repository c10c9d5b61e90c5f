"""Figures of steps, as TensorBoard and MLflow have them afterwards."""

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from structlog.testing import capture_logs

from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.job import RankJob, StepReport
from cgd_ray.training.loop.tracking import Trackers
from cgd_ray.training.progress import Progress
from tests.events import scalars
from tests.unit.training.tiny import rank_job

LOSSES = {1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0}


def report(step: int, loss: float) -> StepReport:
    progress = Progress(step=step, loss=loss, validation_loss=loss + 1)
    return StepReport(progress, 4, 1e-3, 0.5, 2.0, 10, 40, None, 2**30)


def make_job(root: Path, **tracking: object) -> RankJob:
    table = Table(Store(str(root)), "encoded", "tiny", ENCODED)
    return rank_job(table, root / "model", {"tracking": tracking})


def train(job: RankJob, first: int, last: int) -> None:
    """Steps of a run; what it did not flush counts as well, as it was not killed."""
    trackers = Trackers(job, first, is_first=True)
    for step in range(first, last + 1):
        trackers.step(report(step, LOSSES[step]), flush=False)
    trackers.close()


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    train(job, 1, 3)
    train(job, 3, 4)  # from a checkpoint of step 2
    found = scalars(tmp_path / job.figures)
    assert found["train/loss"] == LOSSES
    assert found["train/validation_loss"] == {step: loss + 1 for step, loss in LOSSES.items()}
    assert found["train/tokens_per_second"][1] == 20
    assert "train/mfu" not in found


def test_mlflow_has_one_run_of_a_training_that_was_interrupted(tmp_path: Path) -> None:
    job = make_job(tmp_path, tensorboard=False, mlflow=True, mlflow_experiment="mine")
    train(job, 1, 2)
    client = MlflowClient(f"file://{tmp_path}/mlflow")
    experiment = client.get_experiment_by_name("mine")
    assert experiment
    assert client.search_runs([experiment.experiment_id])[0].info.status == "KILLED"
    train(job, 3, 4)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (job.name, "FINISHED")
    assert run.data.params["learning_rate"] == "1e-06"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {metric.step: metric.value for metric in history} == LOSSES
    assert not (tmp_path / job.figures).exists()


def test_a_training_that_has_no_step_left_stays_finished_in_mlflow(tmp_path: Path) -> None:
    """As after a kill in the export."""
    job = make_job(tmp_path, tensorboard=False, mlflow=True, mlflow_experiment="mine")
    train(job, 1, 4)
    Trackers(job, 5, is_first=True, is_over=True).close()
    client = MlflowClient(f"file://{tmp_path}/mlflow")
    experiment = client.get_experiment_by_name("mine")
    assert experiment
    assert client.search_runs([experiment.experiment_id])[0].info.status == "FINISHED"


def test_another_training_is_another_run(tmp_path: Path) -> None:
    job = make_job(tmp_path, mlflow=True)
    train(job, 1, 1)
    train(replace(job, identity="other"), 1, 1)
    client = MlflowClient(f"file://{tmp_path}/mlflow")
    experiment = client.get_experiment_by_name("cgd-ray")
    assert experiment
    assert len(client.search_runs([experiment.experiment_id])) == 2


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x"])
def test_a_tracker_that_is_not_there_is_a_line_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with capture_logs() as lines:
        train(make_job(tmp_path, mlflow=True, mlflow_uri=uri), 1, 2)
    assert [line["event"] for line in lines] == ["MLflow did not record this step"]
    assert len(scalars(tmp_path / "figures")["train/loss"]) == 2
