"""Progress of rows through stages: a bar where a person waits, a line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from cgd_ray.execution.metrics import StageTally, Tallies, add_tallies

log = structlog.get_logger(__name__)
_LINE_SECONDS = 15.0


class Progress:
    """Shows what the stages have done. Use as a context manager."""

    def __init__(self, todo: dict[str, int]) -> None:
        self._todo = {stage: rows for stage, rows in todo.items() if rows}
        self._earlier: Tallies = {}
        self._tallies: Tallies = {stage: StageTally() for stage in self._todo}
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
        return sum(tally.prompt_tokens + tally.completion_tokens for tally in self._tallies.values())

    def update(self, tallies: Tallies) -> Tallies:
        """Take and show what the engines that run now have done so far; returns the tallies of all."""
        self._tallies = {stage: StageTally() for stage in self._todo}
        add_tallies(self._tallies, self._earlier)
        add_tallies(self._tallies, tallies)
        self._show()
        return self._tallies

    def next_engines(self) -> None:
        """What comes now is counted from nothing again, on top of what was done."""
        self._earlier = self._tallies

    def summary(self) -> dict[str, dict[str, float]]:
        """Per stage: the counts, the seconds between its first start and its last end, completion tokens per second."""
        return {
            stage: {
                "rows": tally.rows,
                "failed": tally.failed,
                "truncated": tally.truncated,
                "over_long": tally.over_long,
                "quarantined": tally.quarantined,
                "prompt_tokens": tally.prompt_tokens,
                "completion_tokens": tally.completion_tokens,
                "cached_tokens": tally.cached_tokens,
                "started": tally.started if tally.rows else 0.0,
                "seconds": round(tally.seconds, 2),
                "busy_seconds": round(tally.busy_seconds, 2),
                "completion_tokens_per_second": round(_speed(tally), 1),
            }
            for stage, tally in self._tallies.items()
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
            for stage, tally in self._tallies.items():
                self._bars.update(self._tasks[stage], completed=tally.rows, speed=f"{_speed(tally):.0f} tok/s")
        elif time.monotonic() - self._line > _LINE_SECONDS:
            self._line = time.monotonic()
            done = {name: f"{entry.rows}/{self._todo[name]}" for name, entry in self._tallies.items()}
            log.info("generating", **done, seconds=round(self._line - self._started))


def _speed(tally: StageTally) -> float:
    return tally.completion_tokens / max(tally.seconds, 1e-9)
