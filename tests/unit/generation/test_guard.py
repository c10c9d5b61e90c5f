"""What stops a run: failures of this engine, not those that an earlier run knew."""

from pathlib import Path

import pytest

from cgd_ray.errors import StoppedError
from cgd_ray.execution.coordinator import Snapshot
from cgd_ray.execution.metrics import StageMetrics
from cgd_ray.execution.progress import Progress
from cgd_ray.generation.guard import Guard
from cgd_ray.generation.planning import Plan, StageCount
from tests.unit.generation.test_planning import recipe


def check(root: Path, rows: int, failed: int, again: int, done: int = 1000) -> None:
    current = Plan({"critique": StageCount(ok=done, failed=again, pending=rows - again)}, again={"critique": again})
    guard = Guard(recipe(root), Progress({"critique": rows}), [], 0.0, current)
    counted = StageMetrics(rows=rows, failed=failed, error="refused")
    guard.check(Snapshot({"critique": counted}, engines=1, idle_seconds=0.0, deaths=0, ceiling=None, broken=None))


def test_rows_that_failed_before_and_fail_again_stop_nothing(tmp_path: Path) -> None:
    check(tmp_path, rows=30, failed=30, again=30)


def test_more_than_may_fail_in_all_stop_a_run_though_all_of_them_failed_before(tmp_path: Path) -> None:
    check(tmp_path, rows=130, failed=100, again=500, done=1000)
    with pytest.raises(StoppedError, match=r"critique: 151 of 180 rows failed"):
        check(tmp_path, rows=180, failed=151, again=500, done=1000)


@pytest.mark.parametrize("again", [0, 10])
def test_rows_that_were_never_tried_count(tmp_path: Path, again: int) -> None:
    with pytest.raises(StoppedError, match=r"critique: 40 of 40 rows failed.*max_failed_fraction"):
        check(tmp_path, rows=40, failed=40, again=again)
