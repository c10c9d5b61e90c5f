"""Conditions that end generation early: its cost, its failures, another command at work on its tables."""

from functools import partial

import pyarrow.compute as pc
import structlog

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import RERUN, CgdError, StoppedError
from cgd_ray.execution.coordinator import Snapshot
from cgd_ray.execution.metrics import ENOUGH_ROWS, Metrics, StageMetrics
from cgd_ray.execution.progress import Progress
from cgd_ray.generation.planning import Plan
from cgd_ray.inference.options import EngineOptions
from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.stages.stage import Stage
from cgd_ray.storage.lease import Lease
from cgd_ray.storage.tables import Table

log = structlog.get_logger(__name__)
_LIST_RETRIES = 4  # tries to read parts that another command merges


class Guard:
    """Counts results and stops the run when it spends too much or fails too often."""

    # This many rows may fail, even if they exceed the allowed share: an earlier recipe may have allowed them.
    _MANY_ROWS = 100

    def __init__(
        self, recipe: Recipe, progress: Progress, leases: list[Lease], paid_before: float, current: Plan
    ) -> None:
        """Create a guard.

        Args:
            recipe: recipe with the ceilings.
            progress: counter of the results.
            leases: leases on the tables that this command adds rows to.
            paid_before: cost of the tables' rows so far.
            current: state of the stages. Rows that failed in an earlier run and fail again do not count against the
                engine, unless there are more than may fail in all.
        """
        self._teacher = recipe.teacher.engine
        self.paid_before = paid_before
        self._leases = leases
        self._again = current.again
        self._rows = current.rows
        self._ceiling = recipe.generation.max_total_tokens
        self._max_failed = recipe.generation.max_failed_fraction
        self.progress = progress
        self._errors: dict[str, str] = {}
        self._deaths = 0
        self._quarantined: dict[str, int] = {}
        self._warned_over_long: set[str] = set()

    def check(self, snapshot: Snapshot) -> None:
        """Stop the run if it must not continue.

        Raises:
            StoppedError: the run is too expensive, fails too often, or works on tables that another command works on.
        """
        for lease in self._leases:
            lease.require()
        metrics = self.progress.update(snapshot.metrics)
        self._warn_of_deaths(snapshot.deaths, metrics)
        for stage, counted in metrics.items():
            self._check_failures(stage, counted)
            self._warn_of_over_long(stage, counted)
        if self._ceiling is not None and self.progress.total_tokens >= self._ceiling:
            raise StoppedError(f"generation.max_total_tokens {self._ceiling} is reached. Fix: raise it; {RERUN}")
        self._check_spending(metrics)

    def require_some(self, done: Plan) -> None:
        """Stop if a stage has no result at all, even with few rows: later steps would only hide the reason."""
        for stage, error in self._errors.items():
            count = done.counts[stage]
            lost = count.failed + count.quarantined
            # With few rows, as in a probe, a few over-long prompts do not represent the others.
            if not (count.ok or count.truncated) and (lost or count.over_long >= ENOUGH_ROWS):
                raise StoppedError(f"{stage}: all {lost + count.over_long} rows failed; the last error: {error}")

    def _warn_of_deaths(self, deaths: int, metrics: Metrics) -> None:
        if deaths > self._deaths:
            log.warning("an engine's process died; restarting it", deaths=deaths)
        self._deaths = deaths
        for stage, counted in metrics.items():
            if counted.quarantined > self._quarantined.get(stage, 0):
                log.warning(f"{stage}: quarantined, since the engine crashes on them", rows=counted.quarantined)
            self._quarantined[stage] = counted.quarantined

    def _check_failures(self, stage: str, counted: StageMetrics) -> None:
        if counted.error is not None:
            self._errors[stage] = counted.error
        many = counted.lost > max(self._MANY_ROWS, self._max_failed * self._rows)
        news = max(0, counted.lost - self._again[stage])
        if many or counted.surely_above(news, self._max_failed):
            raise StoppedError(
                f"{stage}: {counted.lost} of {max(counted.admitted, counted.rows)} rows failed, more than "
                f"generation.max_failed_fraction {self._max_failed}; the last error: {counted.error}"
            )

    def _warn_of_over_long(self, stage: str, counted: StageMetrics) -> None:
        if stage not in self._warned_over_long and counted.surely_above(counted.over_long, self._max_failed):
            self._warned_over_long.add(stage)
            log.warning(
                f"{stage}: many prompts leave no room for a completion and are skipped. Fix: raise the engine's "
                "max_model_len, or lower max_tokens",
                rows=counted.over_long,
                last=counted.error,
            )

    def _check_spending(self, metrics: Metrics) -> None:
        """Check the spend ceiling. The engine enforces it per request, but loses its count of spending in a restart."""
        ceiling = self._teacher.money_ceiling()
        if ceiling is None:
            return
        made = [counted for stage, counted in metrics.items() if stage != "draft"]
        spent = self.paid_before + sum(self._teacher.price(t.prompt_tokens, t.completion_tokens) for t in made)
        if spent > ceiling:
            raise StoppedError(
                f"teacher.engine.spend_ceiling {ceiling} is exceeded: {spent:.4f} spent. Fix: raise it; {RERUN}"
            )


def paid(recipe: Recipe, stages: list[Stage]) -> float:
    """Return the cost of these tables' rows, from any run, by the prices of an HTTP teacher with a ceiling.

    Raises:
        CgdError: other commands keep merging the tables' parts.
    """
    teacher = recipe.teacher.engine
    if teacher.money_ceiling() is None:
        return 0.0
    for _ in range(_LIST_RETRIES):
        parts = [(stage.results, part) for stage in stages for part in stage.results.parts()]
        costs = list(parallel_map(partial(_cost, teacher), parts))
        if None not in costs:
            return sum(cost for cost in costs if cost is not None)
    raise CgdError(
        "tables of the teacher: their parts change all the time. Fix: wait for the other command that merges them"
    )


def _cost(teacher: EngineOptions, part: tuple[Table, str]) -> float | None:
    """Return a part's cost, or None if the part was merged into another one since it was listed."""
    table, name = part
    counts = ["prompt_tokens", "completion_tokens"]
    try:
        [rows] = table.batches([name], counts)
    except FileNotFoundError:
        return None
    return teacher.price(*(pc.sum(rows[count]).as_py() or 0 for count in counts))
