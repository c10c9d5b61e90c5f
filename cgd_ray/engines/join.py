"""The one join of prompts with what the stages made of them: by key, and by the digest of the texts."""

import bisect
import hashlib
import json
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field, replace

import pyarrow.compute as pc

from cgd_ray.engines.stage import TEXTS, Row, Stage
from cgd_ray.storage.fingerprint import text_digest
from cgd_ray.storage.tables import IdRange, Table

_PROMPT = ["prompt_id", "split", "prompt", "reference", "source"]
_STATES = ["prompt_id", "sample", "parent", "status", "attempt", "digest"]


@dataclass(frozen=True)
class JoinedRow:
    """One sample of one prompt, with each stage's result."""

    texts: Row
    """`prompt_id`, `sample`, `prompt`, `reference`, `source`, and each stage's text, None where it did not succeed."""
    results: dict[str, Row | None]
    """By stage, upstream first: the row of its table (RESULTS schema), None where there is none."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of the prompt, the reference, and every stage's text that succeeded."""

    @property
    def mark(self) -> bytes:
        """Its key, texts and states, told without the stages' texts."""
        states = {name: result and (result["status"], result["digest"]) for name, result in self.results.items()}
        key = [self.texts["prompt_id"], self.texts["sample"], self.digests["prompt"], self.digests["reference"]]
        return json.dumps([key, states]).encode()


@dataclass(frozen=True)
class Shard:
    """Prompts of one part of their table, and the parts of each stage's table that may hold their results."""

    prompts: str
    results: dict[str, list[str]]


@dataclass(frozen=True)
class Join:
    """The `train` prompts of a run, each `samples` times, joined with the results of its stages (upstream first).

    A result counts only if it was made from exactly the texts that the row has now (its parent digest). One shard is
    held in memory at a time.
    """

    prompts: Table
    samples: int
    stages: list[Stage]
    parts: dict[str, list[str]] | None = None
    """Of `prompts` and of each stage's table, where they were listed; parts that are merged since are found anew."""
    digest: str | None = None
    """Of all rows' marks, where somebody has read all rows; see `rows_digest`."""

    def listed(self, only: Set[str] | None = None) -> "Join":
        """The same with the parts that are there now; where `only` some stages have made any, theirs."""
        known = {name: parts for name, parts in (self.parts or {}).items() if only is not None and name not in only}
        tables = {"prompts": self.prompts, **{stage.name: stage.results for stage in self.stages}}
        parts = {name: known[name] if name in known else table.parts() for name, table in tables.items()}
        return replace(self, parts=parts, digest=None)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "parts": None}  # megabytes, which nobody needs who is given a shard

    @property
    def borders(self) -> tuple[str, ...]:
        """Where the shards begin, see `shard_of`."""
        ranges = sorted(IdRange.of_part(part) for part in self._parts["prompts"])
        return tuple(ids.first for ids in ranges[1:])

    @property
    def _parts(self) -> dict[str, list[str]]:
        return self.parts or self.listed().parts or {}

    def before(self, making: list[Stage]) -> "Join":
        """The same, but as if nothing had been made by the attempts of these stages, or later."""
        numbered = {stage.name: stage for stage in making}
        return replace(self, stages=[numbered.get(stage.name, stage) for stage in self.stages])

    def shards(self) -> list[Shard]:
        """All shards, in the order of the prompts' ids."""
        parts = self._parts
        prompts = parts["prompts"]
        results = {stage.name: _by_range(prompts, parts[stage.name]) for stage in self.stages}
        return [
            Shard(part, {stage: held[place] for stage, held in results.items()}) for place, part in enumerate(prompts)
        ]

    def rows(self, shard: Shard, *, texts: bool = True) -> Iterator[JoinedRow]:
        """A shard's rows, in the order of their ids.

        Without `texts` the stages' texts are not read: results hold `status`, `digest` and the key only.
        """
        prompts = self.prompts.read([shard.prompts], _PROMPT)
        prompts = prompts.filter(pc.equal(prompts["split"], "train"))
        columns = None if texts else _STATES
        results = {stage.name: self._earlier(stage, shard.results[stage.name], columns) for stage in self.stages}
        for prompt in prompts.to_pylist():
            for sample in range(self.samples):
                yield self._row(prompt, sample, results)

    def rows_near(self, stage: str) -> Iterator[JoinedRow]:
        """Rows of the shards that may hold results of a stage: those of a probe are few among millions."""
        for shard in self.shards():
            if shard.results[stage]:
                yield from self.rows(shard)

    def shard_digest(self, shard: Shard) -> str:
        """Of the marks of a shard's rows."""
        return rows_digest(row.mark for row in self.rows(shard, texts=False))

    def __iter__(self) -> Iterator[JoinedRow]:
        for shard in self.shards():
            yield from self.rows(shard)

    def _earlier(self, stage: Stage, parts: list[str], columns: list[str] | None) -> "_Results":
        """A stage's results, of earlier attempts than its own where it has one."""
        results = _by_key(stage.results, parts, columns)
        if not stage.attempt:
            return results
        return {key: row for key, row in results.items() if row["attempt"] < stage.attempt}

    def _row(self, prompt: Row, sample: int, results: "dict[str, _Results]") -> JoinedRow:
        digests = {"prompt": text_digest(prompt["prompt"]), "reference": text_digest(prompt["reference"] or "")}
        joined = JoinedRow({**dict.fromkeys(TEXTS), **prompt, "sample": sample}, {}, digests)
        del joined.texts["split"]
        for stage in self.stages:
            result = None
            if all(name in digests for name in stage.inputs):
                result = results[stage.name].get((prompt["prompt_id"], sample, stage.parent(digests)))
            joined.results[stage.name] = result
            if result and result["status"] == "ok":
                joined.texts[stage.name] = result.get("text")
                digests[stage.name] = result["digest"]
        return joined


def rows_digest(marks: Iterable[bytes]) -> str:
    """Of the marks of rows, or of the digests of many of them, in the order of the rows."""
    whole = hashlib.sha256()
    for mark in marks:
        whole.update(mark)
    return whole.hexdigest()


def caught_up(stages: list[Stage], listing: dict[str, list[str]], rows: list[Row]) -> list[Row]:
    """Work rows (WORK schema) with what had come onto storage when the stages' parts were listed (by stage)."""
    ids = IdRange.between(min(row["prompt_id"] for row in rows), max(row["prompt_id"] for row in rows))
    rows = [{**row, "todo": list(row["todo"])} for row in rows]
    for stage in stages:
        parts = [name for name in listing[stage.name] if IdRange.of_part(name).meets(ids)]
        results = _by_key(stage.results, parts, None)
        for row in rows:
            if stage.name in row["todo"] and all(row[name] is not None for name in stage.inputs if name in TEXTS):
                result = results.get((row["prompt_id"], row["sample"], stage.parent_of(row)))
                if result and _stands(stage, result):
                    row["todo"].remove(stage.name)
                    row[stage.name] = result["text"] if result["status"] == "ok" else None
    return rows


def _stands(stage: Stage, result: Row) -> bool:
    """Whether this invocation leaves a result as it is: a row that it quarantined itself is not tried twice."""
    quarantined_now = result["status"] == "quarantined" and result["attempt"] == stage.attempt
    return quarantined_now or result["status"] not in stage.again


_Results = dict[tuple[str, int, str], Row]


def _by_range(prompts: list[str], parts: list[str]) -> list[list[str]]:
    """For each part of the prompts, those that may hold results of its rows. Prompts' parts follow each other by id."""
    ranges = [IdRange.of_part(name) for name in prompts]
    firsts, lasts = [ids.first for ids in ranges], [ids.last for ids in ranges]
    held: list[list[str]] = [[] for _ in prompts]
    for part in parts:
        ids = IdRange.of_part(part)
        for place in range(bisect.bisect_left(lasts, ids.first), bisect.bisect_right(firsts, ids.last)):
            held[place].append(part)
    return held


def _by_key(table: Table, parts: list[str], columns: list[str] | None) -> _Results:
    rows = table.read(parts, columns).to_pylist()
    return {(row["prompt_id"], row["sample"], row["parent"]): row for row in rows}
