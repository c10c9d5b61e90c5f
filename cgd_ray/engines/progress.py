"""Progress of rows through stages: a bar where a person waits, a line every few seconds elsewhere."""

import math
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

log = structlog.get_logger(__name__)
_LINE_SECONDS = 15.0


@dataclass
class StageTally:
    """What a stage did in this invocation."""

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    over_long: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    started: float = math.inf
    ended: float = 0.0
    """Seconds since the epoch, by the clocks of the engines' nodes."""

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return max(0.0, self.ended - self.started)


class Progress:
    """Counts outcomes per stage and shows them. Use as a context manager."""

    def __init__(self, todo: dict[str, int]) -> None:
        self._todo = {stage: rows for stage, rows in todo.items() if rows}
        self._tallies = {stage: StageTally() for stage in self._todo}
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

    def add(self, outcome: dict[str, Any]) -> StageTally:
        """Count one finished stage of one row; returns the stage's tally."""
        tally = self._tallies[outcome["stage"]]
        # Outcomes arrive when their row leaves the operator, later stages' at the same time as earlier ones'.
        tally.started = min(tally.started, outcome["started"])
        tally.ended = max(tally.ended, outcome["started"] + outcome["seconds"])
        tally.rows += 1
        tally.failed += outcome["status"] == "failed"
        tally.truncated += outcome["status"] == "truncated"
        tally.over_long += outcome["status"] == "over-long"
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            setattr(tally, name, getattr(tally, name) + outcome[name])
        self._show(outcome["stage"], tally)
        return tally

    def summary(self) -> dict[str, dict[str, float]]:
        """Per stage: the counts, the seconds between its first start and its last end, completion tokens per second."""
        return {
            stage: {
                "rows": tally.rows,
                "failed": tally.failed,
                "truncated": tally.truncated,
                "over_long": tally.over_long,
                "prompt_tokens": tally.prompt_tokens,
                "completion_tokens": tally.completion_tokens,
                "cached_tokens": tally.cached_tokens,
                "seconds": round(tally.seconds, 2),
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

    def _show(self, stage: str, tally: StageTally) -> None:
        if self._bars:
            self._bars.update(self._tasks[stage], completed=tally.rows, speed=f"{_speed(tally):.0f} tok/s")
        elif time.monotonic() - self._line > _LINE_SECONDS:
            self._line = time.monotonic()
            done = {name: f"{entry.rows}/{self._todo[name]}" for name, entry in self._tallies.items()}
            log.info("generating", **done, seconds=round(self._line - self._started))


def _speed(tally: StageTally) -> float:
    return tally.completion_tokens / max(tally.seconds, 1e-9)
