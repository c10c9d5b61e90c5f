"""A row walks a chain of stages on one engine; every finished stage is committed at once."""

import asyncio
import contextlib
import datetime as dt
import re
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from cgd_ray.config.generation import Sampling
from cgd_ray.engines.base import (
    CeilingError,
    Completion,
    CompletionError,
    Decoding,
    Engine,
    PoisonError,
    PromptTooLongError,
    Request,
    Turn,
)
from cgd_ray.engines.tally import StageTally, Tallies
from cgd_ray.storage.commit import Committer
from cgd_ray.storage.fingerprint import derived_seed, parent_digest, text_digest
from cgd_ray.storage.tables import Table

TEXTS = ("draft", "answer", "critique", "refine", "evaluation")
"""Stages whose texts a row can carry."""

DONE = pa.schema([pa.field("prompt_id", pa.string()), pa.field("sample", pa.int32())])
"""Rows at the end of their way: what was made of them is on storage."""

WORK = pa.schema(
    [
        *DONE,
        pa.field("prompt", pa.string()),
        pa.field("reference", pa.string()),
        *(pa.field(name, pa.string()) for name in TEXTS),
        pa.field("todo", pa.list_(pa.string())),  # stages that the row lacks
    ]
)
"""Rows between operators: with the texts so far, and what is still to be done."""

Row = dict[str, Any]

_IDLE_SECONDS = 0.05  # long enough for blocks that follow each other, short beside any completion
_TELEMETRY_FLUSHES = 12  # of results, for one of telemetry


@dataclass(frozen=True)
class Stage:
    """One completion per row: what it is made from, how it is asked, and where the result goes."""

    name: str
    results: Table
    telemetry: Table
    model: str
    sampling: Sampling
    seed: int
    inputs: tuple[str, ...]  # columns of the row that it is made from, in the order of the parent digest
    conversation: Callable[[Row], tuple[Turn, ...]]
    attempt: int = 0
    has_verdict: bool = False
    description: dict[str, Any] = field(default_factory=dict)  # what the tables' fingerprint is made of

    def parent(self, digests: dict[str, str]) -> str:
        """Digest of exactly the texts that a result is made from, given the digest of each by its name."""
        return parent_digest(*(digests[name] for name in self.inputs))

    def parent_of(self, row: Row) -> str:
        """The same, given the texts."""
        return self.parent({name: text_digest(row[name] or "") for name in self.inputs})

    def request(self, row: Row) -> Request:
        """What the engine is asked for this row; the seed is the row's own."""
        decoding = Decoding(
            max_tokens=self.sampling.max_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            seed=derived_seed(self.seed, self.name, row["prompt_id"], row["sample"]),
            chat_template_kwargs=self.sampling.chat_template_kwargs,
        )
        name = row_name(row)
        return Request(f"{self.name}-{name}", name, self.conversation(row), decoding)


def row_name(row: Row) -> str:
    """The row's key as one word."""
    return f"{row['prompt_id']}-{row['sample']}"


@dataclass(frozen=True)
class BarePrompt:
    """x and nothing else: drafts, the teacher's direct answers, and evaluation, as at inference."""

    def __call__(self, row: Row) -> tuple[Turn, ...]:
        """The conversation that asks for this row's completion."""
        return (Turn("user", row["prompt"]),)


_VERDICT = re.compile(r"^\W*verdict\W+(right|wrong)\W*$", re.IGNORECASE | re.MULTILINE)


def parse_verdict(text: str) -> str | None:
    """The last line of a critique that is "Verdict: right" or "Verdict: wrong", decoration aside."""
    found = _VERDICT.findall(text)
    return found[-1].lower() if found else None


class ChainRunner:
    """Runs rows through stages on one engine and one event loop.

    At most `max_in_flight` rows generate at a time. More may be given to it: they take the places of rows that only
    wait for their commit, or that a slower row of their block keeps waiting.
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
        """A runner.

        Args:
            engine: what completes.
            stages: in the order in which rows walk them.
            max_in_flight: rows that generate at a time.
            flush_rows: results that make a part.
            flush_seconds: the longest time that a result waits for others.
            spare_rows: how many rows more than `max_in_flight` it is given at most, where that is known.
            on_left: told the name of each row that will ask the engine for nothing more.
        """
        self._engine = engine
        self._stages = stages
        self._on_left = on_left
        self._spare_rows = spare_rows
        self._unwritten = 0
        self._host = socket.gethostname()
        self._slots = asyncio.Semaphore(max_in_flight)
        self._walks: set[asyncio.Task[None]] = set()
        self._tallies: Tallies = {}
        self._stopping = False
        self.ceiling: str | None = None
        """Why the engine will not go on."""
        self._results: dict[str, Committer] = {}
        for stage in stages:
            before = next(reversed(self._results.values()), None)
            self._results[stage.name] = Committer(
                stage.results, attempt=stage.attempt, flush_rows=flush_rows, flush_seconds=flush_seconds, after=before
            )
        # Nothing waits for telemetry, and a kill may lose it: fewer, larger parts.
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
        """Take rows through the stages that they lack; return them when all their results are on storage.

        Suspects of an engine's death need no slot: others wait for them, and may hold all slots while they do.
        """
        free = contextlib.nullcontext()
        slots = [free if row_name(row) in without_slots else self._slots for row in rows]
        return await asyncio.gather(*(self._run_row(dict(row), slot) for row, slot in zip(rows, slots, strict=True)))

    async def stop(self) -> None:
        """Give up what is being generated, begin nothing more, and write what is finished."""
        self._stopping = True
        for walk in self._walks:
            walk.cancel()
        await asyncio.gather(*self._walks, return_exceptions=True)
        await self._write_all()

    def take_tallies(self) -> Tallies:
        """What was done since this was last called."""
        taken, self._tallies = self._tallies, {}
        return taken

    async def close(self) -> None:
        """Write what waits, then end the engine."""
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
                    asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._flush_if_idle)
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
        """Rows that wait for their commit take the room of those that a fast engine could go on with."""
        self._unwritten += 1
        if self._spare_rows is not None and self._unwritten >= self._spare_rows // 2:
            self._unwritten = 0
            for committer in self._results.values():
                committer.flush()

    def _flush_if_idle(self) -> None:
        """Nobody adds to the open parts for now: write them, and their rows go on."""
        if not self._walks:
            # Telemetry first: this may be the last block, and nobody waits for it.
            for committer in (*self._telemetry.values(), *self._results.values()):
                committer.flush()

    async def _one(self, stage: Stage, row: Row) -> "asyncio.Future[None]":
        started, clock = dt.datetime.now(dt.UTC), time.monotonic()
        made: Completion | CompletionError
        try:
            made = await self._engine.complete(stage.request(row))
        except CompletionError as failure:
            made = failure
        seconds = time.monotonic() - clock
        result = _result(stage, row, made)
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
        self._tallies.setdefault(stage.name, StageTally()).add(_tally(result, cached, started.timestamp(), seconds))
        return self._results[stage.name].add(result)


def _texts(stage: Stage) -> list[str]:
    """Inputs that an earlier stage makes; without them this stage cannot run."""
    return [name for name in stage.inputs if name in TEXTS]


def _result(stage: Stage, row: Row, made: Completion | CompletionError) -> Row:
    completion = made if isinstance(made, Completion) else None
    error = None if isinstance(made, Completion) else " ".join(str(made).split())[:1000]
    return {
        "prompt_id": row["prompt_id"],
        "sample": row["sample"],
        "parent": stage.parent_of(row),
        "status": _status(made),
        "digest": text_digest(completion.text) if completion else None,
        "text": completion.text if completion else None,
        "finish_reason": completion.finish_reason if completion else None,
        "verdict": parse_verdict(completion.text) if completion and stage.has_verdict else None,
        "error": error,
        "prompt_tokens": completion.prompt_tokens if completion else None,
        "completion_tokens": completion.completion_tokens if completion else None,
        "model": stage.model,
        "attempt": stage.attempt,
    }


def _status(made: Completion | CompletionError) -> str:
    match made:
        case Completion():
            return "truncated" if made.truncated else "ok"
        case PromptTooLongError():
            return "over-long"
        case PoisonError():
            return "quarantined"
        case CompletionError():
            return "failed"


def _tally(result: Row, cached: int | None, started: float, seconds: float) -> StageTally:
    status = result["status"]
    return StageTally(
        rows=1,
        failed=int(status == "failed"),
        truncated=int(status == "truncated"),
        over_long=int(status == "over-long"),
        quarantined=int(status == "quarantined"),
        prompt_tokens=result["prompt_tokens"] or 0,
        completion_tokens=result["completion_tokens"] or 0,
        cached_tokens=cached or 0,
        busy_seconds=seconds,
        started=started,
        ended=started + seconds,
        error=result["error"],
    )
