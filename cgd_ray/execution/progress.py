"""Progress of rows through stages: a bar on a terminal, elsewhere a log line every few seconds."""

import sys
import time
from types import TracebackType
from typing import Any, Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from cgd_ray.execution.metrics import Metrics, StageMetrics, add_metrics

log = structlog.get_logger(__name__)
_LOG_INTERVAL_S = 15.0


class Progress:
    """Shows the progress of the stages. Use as a context manager."""

    def __init__(self, todo: dict[str, int]) -> None:
        self._todo = {stage: rows for stage, rows in todo.items() if rows}
        self._earlier: Metrics = {}
        self._metrics: Metrics = {stage: StageMetrics() for stage in self._todo}
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        console = Console(file=sys.stderr)
        self._bars = (
            Bars(*columns, TextColumn("{task.fields[speed]}"), console=console) if console.is_terminal else None
        )
        self._tasks: dict[str, Any] = {}
        self._started = self._line = time.monotonic()

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens of all stages."""
        return sum(counted.prompt_tokens + counted.completion_tokens for counted in self._metrics.values())

    def update(self, metrics: Metrics) -> Metrics:
        """Show what the running engines have done so far; return the metrics with those of earlier engines."""
        self._metrics = {stage: StageMetrics() for stage in self._todo}
        add_metrics(self._metrics, self._earlier)
        add_metrics(self._metrics, metrics)
        self._show()
        return self._metrics

    def next_engines(self) -> None:
        """Add the metrics of the next engines, which start from zero, to the metrics so far."""
        self._earlier = self._metrics

    def summary(self) -> dict[str, dict[str, float]]:
        """Return per stage: counts, seconds from the first start to the last end, completion tokens per second."""
        return {
            stage: {
                "rows": counted.rows,
                "failed": counted.failed,
                "truncated": counted.truncated,
                "over_long": counted.over_long,
                "quarantined": counted.quarantined,
                "prompt_tokens": counted.prompt_tokens,
                "completion_tokens": counted.completion_tokens,
                "cached_tokens": counted.cached_tokens,
                "started": counted.started if counted.rows else 0.0,
                "seconds": round(counted.seconds, 2),
                "busy_seconds": round(counted.busy_seconds, 2),
                "completion_tokens_per_second": round(_speed(counted), 1),
            }
            for stage, counted in self._metrics.items()
        }

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
            self._tasks = {
                stage: self._bars.add_task(stage, total=rows, speed="") for stage, rows in self._todo.items()
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def _show(self) -> None:
        if self._bars:
            for stage, counted in self._metrics.items():
                self._bars.update(self._tasks[stage], completed=counted.rows, speed=f"{_speed(counted):.0f} tok/s")
        elif time.monotonic() - self._line > _LOG_INTERVAL_S:
            self._line = time.monotonic()
            done = {name: f"{entry.rows}/{self._todo[name]}" for name, entry in self._metrics.items()}
            log.info("generating", **done, seconds=round(self._line - self._started))


def _speed(counted: StageMetrics) -> float:
    return counted.completion_tokens / max(counted.seconds, 1e-9)
