"""Print the content of a recipe's tables: counts per stage, and the rows themselves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from rich.console import Console
from rich.table import Table as RichTable

from cgd_ray.config.recipe import Recipe
from cgd_ray.curation.run import Key, dropped_reasons
from cgd_ray.data.prepare import skipped_rows
from cgd_ray.generation.engine_failures import recorded_failures
from cgd_ray.generation.explain import explain
from cgd_ray.generation.planning import plan
from cgd_ray.prompts.conversation import history_of, transcript
from cgd_ray.redaction import redact_tree
from cgd_ray.stages.resolved import ResolvedRun
from cgd_ray.stages.rows import Join, JoinedRow, Shard
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import deciding_settings
from cgd_ray.storage.tables import ID_DIGITS, IdRange

_FAILURES = {"failed", "quarantined", "over-long"}


def print_status(run: ResolvedRun, console: Console) -> None:
    """Print rows per stage and state, the rows that the next run would generate, and the tables that it would reuse."""
    joined = run.join()
    current = plan(joined)
    table = RichTable(
        "stage", "table", "ok", "truncated", "over-long", "quarantined", "failed", "pending", "blocked", "to do"
    )
    for stage in joined.stages:
        count = current.counts[stage.name]
        numbers = (
            count.ok,
            count.truncated,
            count.over_long,
            count.quarantined,
            count.failed,
            count.pending,
            count.blocked,
            current.todo[stage.name],
        )
        table.add_row(stage.name, stage.results.fingerprint, *map(str, numbers))
    console.print(table)
    for line in explain(run.store, run.recipe, joined.stages):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    folder = run.folder
    for trouble in recorded_failures(folder):
        console.print(trouble, markup=False, highlight=False, soft_wrap=True)
    manifest, settings = folder.read_json("manifest.json"), deciding_settings(run.recipe.model_dump(mode="json"))
    reported = manifest is not None and manifest["config"] == redact_tree(settings)
    generated = "complete" if reported else "all generated; what comes after it is not complete"
    state = generated if current.is_done else "not complete"
    console.print(f"{run.store.url(folder.path('')).rstrip('/')}: {state}", soft_wrap=True)


@dataclass(frozen=True)
class Wanted:
    """Conditions on the rows to print; a row must meet all of them."""

    dropped: bool = False
    """Only rows that curation dropped."""
    failed: bool = False
    """Only rows that failed, were quarantined, or were over-long in a stage."""
    row: str | None = None
    """Prompt id of the row or the beginning of it, or its place in the source (FILE:ROW); None for any row."""

    def may_be_in(self, shard: Shard) -> bool:
        """Whether the shard may hold such a row, by the range of its ids."""
        if self.row is None or ":" in self.row:
            return True
        ids, start = IdRange.of_part(shard.prompts), self.row[:ID_DIGITS]
        return ids.first[: len(start)] <= start <= ids.last[: len(start)]

    def has(self, row: JoinedRow, reason: str | None) -> bool:
        """Whether the row meets the conditions; `reason` is why curation dropped it, None if it did not."""
        identity, source = row.texts["prompt_id"], row.texts["source"]
        is_named = self.row is None or identity.startswith(self.row) or f"/{source}".endswith(f"/{self.row}")
        has_failed = any(result and result["status"] in _FAILURES for result in row.results.values())
        return is_named and (reason is not None or not self.dropped) and (has_failed or not self.failed)


def print_rows(run: ResolvedRun, console: Console, count: int, wanted: Wanted) -> None:
    """Print the first `count` wanted rows with all their texts, in the order of their keys."""
    joined = run.join()
    reasons_in = dropped_reasons(run.recipe, joined)
    if reasons_in is None:
        console.print("these rows were not curated yet with these settings: what is dropped is not known")
    rows = list(islice(_with_reasons(joined, reasons_in, wanted), count))
    for row, reason in rows:
        _print_row(console, row, reason)
    if not rows:
        console.print("no row to train on is like that; held-out rows are not generated")


def print_skipped(recipe: Recipe, store: Store, console: Console, count: int) -> None:
    """Print the first `count` unusable rows of the source, and why."""
    rows = skipped_rows(recipe, store)
    for row in rows[:count]:
        console.print(f"{row['reason']}: {row['text']}", markup=False, highlight=False, soft_wrap=True)
    if not rows:
        console.print("no row of the source was skipped")


def _with_reasons(
    joined: Join, reasons_in: Callable[[Shard], dict[Key, str]] | None, wanted: Wanted
) -> Iterator[tuple[JoinedRow, str | None]]:
    for shard in filter(wanted.may_be_in, joined.shards()):
        reasons = reasons_in(shard) if reasons_in else {}
        if wanted.dropped and not reasons:
            continue
        for row in joined.rows(shard):
            reason = reasons.get(_key(row))
            if wanted.has(row, reason):
                yield row, reason


def _print_row(console: Console, row: JoinedRow, reason: str | None) -> None:
    name, sample = _key(row)
    console.rule(f"{name} sample {sample}" + (f", dropped: {reason}" if reason else ""))
    console.print(f"[bold]prompt[/bold] ({row.texts['source']})")
    question = transcript(row.texts["prompt"], history_of(row.texts["history"]))
    console.print(question, markup=False, highlight=False)
    for stage, result in row.results.items():
        state = "not generated" if result is None else result["status"]
        verdict = f", verdict {result['verdict']}" if result and result["verdict"] else ""
        console.print(f"[bold]{stage}[/bold] ({state}{verdict})")
        if result:
            console.print(result["text"] or result["error"] or "", markup=False, highlight=False)


def _key(row: JoinedRow) -> tuple[str, int]:
    return row.texts["prompt_id"], row.texts["sample"]
