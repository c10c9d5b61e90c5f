"""Run rows through a chain of stages on one engine, and commit every finished stage at once."""

import asyncio
import contextlib
import datetime as dt
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

from cgd_ray.errors import ConfigError
from cgd_ray.execution.metrics import Metrics, StageMetrics
from cgd_ray.execution.results import metrics_of, parse_verdict, result_row
from cgd_ray.inference.base import CeilingError, Completion, CompletionError, Engine, Request
from cgd_ray.prompts.thinking import thinking_in
from cgd_ray.stages.stage import TEXTS, VERDICTS, Row, Stage, row_name
from cgd_ray.storage.commit import Committer

_IDLE_FLUSH_S = 0.05  # longer than the gap between consecutive blocks, short compared with any completion
_TELEMETRY_FLUSHES = 12  # result flushes per telemetry flush


class ChainRunner:
    """Runs rows through stages on one engine and one event loop.

    At most `max_in_flight` rows generate at a time. The runner accepts more: they replace rows that only wait for their
    commit, or for a slower row of their block.
    """

    def __init__(
        self,
        engine: Engine,
        stages: list[Stage],
        *,
        max_in_flight: int,
        flush_rows: int,
        flush_seconds: float,
        spare_rows: int | None = None,
        on_left: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Create a runner.

        Args:
            engine: engine that completes the requests.
            stages: stages in the order in which rows pass through them.
            max_in_flight: maximum number of rows that generate at a time.
            flush_rows: number of results per part.
            flush_seconds: maximum time that a result waits for others.
            spare_rows: maximum number of rows that the runner gets beyond `max_in_flight`, if known.
            on_left: called with the name of each row that sends no further requests to the engine.
        """
        self._engine = engine
        self._stages = stages
        self._on_left = on_left
        self._spare_rows = spare_rows
        self._host = socket.gethostname()
        self._slots = asyncio.Semaphore(max_in_flight)
        self._walks: set[asyncio.Task[None]] = set()
        self._metrics: Metrics = {}
        self._stopping = False
        self.ceiling: str | None = None
        """Why the engine stopped at its spend ceiling."""
        self._results: dict[str, Committer] = {}
        for stage in stages:
            before = next(reversed(self._results.values()), None)
            self._results[stage.name] = Committer(
                stage.results,
                attempt=stage.attempt,
                flush_rows=flush_rows,
                flush_seconds=flush_seconds,
                after=before,
                borders=stage.borders,
            )
        # Nothing waits for telemetry, and losing it in a kill is acceptable: write fewer, larger parts.
        self._telemetry = {
            stage.name: Committer(
                stage.telemetry,
                attempt=stage.attempt,
                flush_rows=_TELEMETRY_FLUSHES * flush_rows,
                flush_seconds=_TELEMETRY_FLUSHES * flush_seconds,
            )
            for stage in stages
        }

    async def run(self, rows: list[Row], without_slots: Collection[str] = ()) -> list[Row]:
        """Run rows through the stages that they lack; return them when all their results are stored.

        Suspects of an engine's death need no slot: other rows wait for them and may hold all slots meanwhile. Rows that
        lack nothing here need none either: they would wait for generating rows, and delay the next engine.
        """
        free, names = contextlib.nullcontext(), {stage.name for stage in self._stages}
        passing = [row_name(row) in without_slots or names.isdisjoint(row["todo"]) for row in rows]
        slots = [free if passes else self._slots for passes in passing]
        return await asyncio.gather(*(self._run_row(dict(row), slot) for row, slot in zip(rows, slots, strict=True)))

    async def stop(self) -> None:
        """Cancel running requests, start no new ones, and write finished results."""
        self._stopping = True
        for walk in self._walks:
            walk.cancel()
        await asyncio.gather(*self._walks, return_exceptions=True)
        await self._write_all()

    def take_metrics(self) -> Metrics:
        """Return the metrics since the last call."""
        taken, self._metrics = self._metrics, {}
        return taken

    async def close(self) -> None:
        """Write pending results, then close the engine."""
        await self._write_all()
        await self._engine.close()

    async def _write_all(self) -> None:
        await asyncio.gather(*(committer.close() for committer in (*self._results.values(), *self._telemetry.values())))

    async def _run_row(self, row: Row, slot: contextlib.AbstractAsyncContextManager[None]) -> Row:
        commits: list[asyncio.Future[None]] = []
        async with slot:
            if self._stopping:
                return row
            walk = asyncio.create_task(self._walk(row, commits))
            self._walks.add(walk)
            try:
                await walk
            except CeilingError as error:
                self.ceiling = str(error)
            except asyncio.CancelledError:
                if not self._stopping:
                    raise
            finally:
                self._walks.discard(walk)
                if not self._walks:
                    asyncio.get_running_loop().call_later(_IDLE_FLUSH_S, self._flush_if_idle)
        if self._on_left:
            await self._on_left(row_name(row))
        self._flush_if_held_up()
        await asyncio.gather(*commits)
        return row

    async def _walk(self, row: Row, commits: "list[asyncio.Future[None]]") -> None:
        for stage in self._stages:
            if stage.name in row["todo"] and all(row[name] is not None for name in _texts(stage)):
                commits.append(await self._one(stage, row))

    def _flush_if_held_up(self) -> None:
        """Flush if rows that wait for their commit take up half of the spare rows that a fast engine could work on."""
        waiting = max(committer.waiting for committer in self._results.values())
        if self._spare_rows is not None and waiting >= self._spare_rows // 2:
            for committer in self._results.values():
                committer.flush()

    def _flush_if_idle(self) -> None:
        """Write the open parts if no row is generating, so that their rows continue."""
        if not self._walks:
            # Telemetry first: this may be the last block, and nothing waits for telemetry.
            for committer in (*self._telemetry.values(), *self._results.values()):
                committer.flush()

    async def _one(self, stage: Stage, row: Row) -> "asyncio.Future[None]":
        self._metrics.setdefault(stage.name, StageMetrics()).admitted += 1
        started, clock = dt.datetime.now(dt.UTC), time.monotonic()
        made: Completion | CompletionError
        try:
            request = _request(stage, row)
            made = _usable(stage, request, await self._engine.complete(request))
            if stage.asks_verdict and not made.truncated and parse_verdict(made.text) is None:
                made = await self._with_verdict(stage, request, made)
        except CompletionError as failure:
            made = failure
        seconds = time.monotonic() - clock
        result = result_row(stage, row, made)
        if result["status"] == "ok":
            row[stage.name] = result["text"]
        cached = made.cached_tokens if isinstance(made, Completion) else None
        self._telemetry[stage.name].add(
            {
                "prompt_id": row["prompt_id"],
                "sample": row["sample"],
                "started": started,
                "seconds": seconds,
                "cached_tokens": cached,
                "host": self._host,
            }
        )
        self._metrics.setdefault(stage.name, StageMetrics()).add(
            metrics_of(result, cached, started.timestamp(), seconds)
        )
        return self._results[stage.name].add(result)

    async def _with_verdict(self, stage: Stage, request: Request, made: Completion) -> Completion:
        """Return the critique with the verdict line that it lacks, as the critic answers when asked for it.

        The critique stays as it is if the critic gives no such answer. Tokens of both requests are counted.
        """
        try:
            answer = await self._engine.complete(stage.verdict_request(request, made.text))
        except CompletionError:
            return made
        found = [word for word in VERDICTS if word in answer.text.lower()]
        line = f"\n\nVerdict: {found[0]}" if len(found) == 1 else ""
        return replace(
            made,
            text=made.text.rstrip() + line if line else made.text,
            prompt_tokens=made.prompt_tokens + answer.prompt_tokens,
            completion_tokens=made.completion_tokens + answer.completion_tokens,
            cached_tokens=None if made.cached_tokens is None else made.cached_tokens + (answer.cached_tokens or 0),
        )


def _request(stage: Stage, row: Row) -> Request:
    try:
        return stage.request(row)
    except ConfigError as mistake:  # a template that cannot show this one row
        raise CompletionError(str(mistake)) from mistake


def _usable(stage: Stage, request: Request, made: Completion) -> Completion:
    """Return the completion if its text may be learnt from, criticised or graded.

    Raises:
        CompletionError: the completion is empty, or holds thinking.
    """
    if made.truncated:
        return made
    if stage.must_say_something and not made.text.strip():
        raise _unusable("the completion is empty", made)
    if tag := thinking_in(made.text, "\n".join(turn.content for turn in request.turns)):
        raise _unusable(
            f"the text holds thinking ({tag}), which would be learnt and graded. Fix: set reasoning_parser (vLLM) or "
            "reasoning_tags (an endpoint) of the engine, or switch thinking off in the stage's chat_template_kwargs",
            made,
        )
    return made


def _unusable(text: str, made: Completion) -> CompletionError:
    return CompletionError(text, made.prompt_tokens, made.completion_tokens)


def _texts(stage: Stage) -> list[str]:
    """Return the inputs that earlier stages make; without them this stage cannot run."""
    return [name for name in stage.inputs if name in TEXTS]
