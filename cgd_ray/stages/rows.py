"""The single join of prompts with the stages' results: by key, and by the digest of the texts."""

import bisect
import hashlib
import json
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.stages.stage import TEXTS, Row, Stage, prompt_digest
from cgd_ray.storage.compaction import compact
from cgd_ray.storage.fingerprint import text_digest
from cgd_ray.storage.tables import IdRange, Table

_PROMPT = ["prompt_id", "split", "prompt", "history", "reference", "source"]
_STATES = ["prompt_id", "sample", "parent", "status", "attempt", "digest"]


@dataclass(frozen=True)
class JoinedRow:
    """One sample of one prompt, with each stage's result."""

    texts: Row
    """`prompt_id`, `sample`, `prompt`, `history`, `reference`, `source`, and each stage's text (None if the stage did
    not succeed)."""
    results: dict[str, Row | None]
    """By stage, upstream first: the row of its table (RESULTS schema), or None."""
    digests: dict[str, str] = field(default_factory=dict)
    """Digests of the prompt, the reference, and the text of every stage that succeeded."""

    @property
    def mark(self) -> bytes:
        """The row's key, text digests and states; computed without reading the stages' texts."""
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

    A result counts only if it was made from exactly the row's current texts (its parent digest). One shard is held in
    memory at a time.
    """

    prompts: Table
    samples: int
    stages: list[Stage]
    parts: dict[str, list[str]] | None = None
    """Parts of `prompts` and of each stage's table, if listed; parts merged since then are found again."""
    digest: str | None = None
    """Digest of all rows' marks, if all rows have been read; see `rows_digest`."""

    def listed(self, only: Set[str] | None = None) -> "Join":
        """Return the join with the current parts; `only` names the stages whose parts may have changed."""
        known = {name: parts for name, parts in (self.parts or {}).items() if only is not None and name not in only}
        tables = {"prompts": self.prompts, **{stage.name: stage.results for stage in self.stages}}
        parts = {name: known[name] if name in known else table.parts() for name, table in tables.items()}
        return replace(self, parts=parts, digest=None)

    def compacted(self) -> "Join":
        """Merge the stages' small parts, and return the join with the resulting parts."""
        listed = self.listed()
        parts = listed.parts or {}
        tables = {stage.name: stage.results for stage in self.stages}
        merged = {name for name, table in tables.items() if compact(table, parts[name], listed.borders)}
        return listed.listed(merged)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "parts": None}  # megabytes that a worker with one shard does not need

    @property
    def borders(self) -> tuple[str, ...]:
        """First ids of all shards after the first, see `shard_of`."""
        ranges = sorted(IdRange.of_part(part) for part in self._parts["prompts"])
        return tuple(ids.first for ids in ranges[1:])

    @property
    def _parts(self) -> dict[str, list[str]]:
        return self.parts or self.listed().parts or {}

    def before(self, making: list[Stage]) -> "Join":
        """Return the join without the results of these stages' attempts, or of later ones."""
        numbered = {stage.name: stage for stage in making}
        return replace(self, stages=[numbered.get(stage.name, stage) for stage in self.stages])

    def shards(self) -> list[Shard]:
        """Return all shards, in the order of the prompts' ids."""
        parts = self._parts
        prompts = parts["prompts"]
        results = {stage.name: _by_range(prompts, parts[stage.name]) for stage in self.stages}
        return [
            Shard(part, {stage: held[place] for stage, held in results.items()}) for place, part in enumerate(prompts)
        ]

    def rows(self, shard: Shard, *, texts: bool = True) -> Iterator[JoinedRow]:
        """Yield a shard's rows, in the order of their ids.

        Without `texts`, the stages' texts are not read: results hold only `status`, `digest` and the key.
        """
        prompts = self.prompts.read([shard.prompts], _PROMPT)
        prompts = prompts.filter(pc.equal(prompts["split"], "train"))
        columns = None if texts else _STATES
        results = {stage.name: self._earlier(stage, shard.results[stage.name], columns) for stage in self.stages}
        for prompt in prompts.to_pylist():
            for sample in range(self.samples):
                yield self._row(prompt, sample, results)

    def rows_near(self, stage: str) -> Iterator[JoinedRow]:
        """Yield the rows of shards that may hold results of a stage: a probe has few among millions."""
        for shard in self.shards():
            if shard.results[stage]:
                yield from self.rows(shard)

    def whole_digest(self) -> str:
        """Return the digest of every row's key, texts and states: that of the plan, else computed in parallel."""
        if self.digest is not None:
            return self.digest
        return rows_digest(digest.encode() for digest in parallel_map(self.shard_digest, self.shards()))

    def shard_digest(self, shard: Shard) -> str:
        """Return the digest of the marks of a shard's rows."""
        return rows_digest(row.mark for row in self.rows(shard, texts=False))

    def __iter__(self) -> Iterator[JoinedRow]:
        for shard in self.shards():
            yield from self.rows(shard)

    def _earlier(self, stage: Stage, parts: list[str], columns: list[str] | None) -> "_Results":
        """Return a stage's results; if the stage has an attempt number, only those of earlier attempts."""
        results = _by_key(stage.results, parts, columns)
        if not stage.attempt:
            return results
        return {key: row for key, row in results.items() if row["attempt"] < stage.attempt}

    def _row(self, prompt: Row, sample: int, results: "dict[str, _Results]") -> JoinedRow:
        digests = {"prompt": prompt_digest(prompt), "reference": text_digest(prompt["reference"] or "")}
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
    """Return the digest of rows' marks, or of the digests of groups of rows, in the order of the rows."""
    whole = hashlib.sha256()
    for mark in marks:
        whole.update(mark)
    return whole.hexdigest()


class FinishedRows:
    """Adds results stored since planning to work rows, for the blocks of an engine that died.

    Consecutive blocks of a shard need the same parts, so a few reads are cached. Use from one thread at a time.
    """

    _READS = 4  # cached reads per stage: the number of shards that an engine works on at a time

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = {stage.name: stage for stage in stages}
        self._parts: dict[str, list[str]] = {}
        self._read = lru_cache(maxsize=self._READS * len(stages))(self._results)

    def look(self) -> None:
        """List the stages' parts, for use by `rows`."""
        self._parts = {name: stage.results.parts() for name, stage in self._stages.items()}

    def rows(self, rows: list[Row]) -> list[Row]:
        """Return these rows (WORK schema) with the results that were stored when the parts were listed."""
        keys = [row["prompt_id"] for row in rows]
        ids, wanted = IdRange.between(min(keys), max(keys)), pa.array(keys, pa.string())
        results = {}
        for name in self._stages:
            table = self._read(name, tuple(part for part in self._parts[name] if IdRange.of_part(part).meets(ids)))
            results[name] = _keyed(table.filter(pc.is_in(table["prompt_id"], wanted)))
        return _with_results(self._stages.values(), results, rows)

    def _results(self, stage: str, parts: tuple[str, ...]) -> pa.Table:
        return self._stages[stage].results.read(list(parts))


def _with_results(stages: Iterable[Stage], found: "dict[str, _Results]", rows: list[Row]) -> list[Row]:
    rows = [{**row, "todo": list(row["todo"])} for row in rows]
    for stage in stages:
        results = found[stage.name]
        for row in rows:
            if stage.name in row["todo"] and all(row[name] is not None for name in stage.inputs if name in TEXTS):
                result = results.get((row["prompt_id"], row["sample"], stage.parent_of(row)))
                if result and _stands(stage, result):
                    row["todo"].remove(stage.name)
                    row[stage.name] = result["text"] if result["status"] == "ok" else None
    return rows


def _stands(stage: Stage, result: Row) -> bool:
    """Whether this invocation keeps a result: a row that it quarantined itself is not retried."""
    quarantined_now = result["status"] == "quarantined" and result["attempt"] == stage.attempt
    return quarantined_now or result["status"] not in stage.again


_Results = dict[tuple[str, int, str], Row]


def _by_range(prompts: list[str], parts: list[str]) -> list[list[str]]:
    """Return, for each part of the prompts, the parts that may hold its results. Prompts' parts are ordered by id."""
    ranges = [IdRange.of_part(name) for name in prompts]
    firsts, lasts = [ids.first for ids in ranges], [ids.last for ids in ranges]
    held: list[list[str]] = [[] for _ in prompts]
    for part in parts:
        ids = IdRange.of_part(part)
        for place in range(bisect.bisect_left(lasts, ids.first), bisect.bisect_right(firsts, ids.last)):
            held[place].append(part)
    return held


def _by_key(table: Table, parts: list[str], columns: list[str] | None) -> _Results:
    return _keyed(table.read(parts, columns))


def _keyed(results: pa.Table) -> _Results:
    return {(row["prompt_id"], row["sample"], row["parent"]): row for row in results.to_pylist()}
