"""What a recipe's tables hold: counts per stage, and the rows themselves."""

from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table as RichTable

from cgd_ray.config.recipe import Recipe
from cgd_ray.curation.run import dropped_reasons
from cgd_ray.data.prepare import prepare_prompts
from cgd_ray.generation.planning import plan
from cgd_ray.generation.run import train_rows
from cgd_ray.generation.stages import Stages, build_stages
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Run


def print_status(recipe: Recipe, store: Store, console: Console) -> None:
    """Rows per stage and state; what the next run of this recipe would generate."""
    stages, rows = _load(recipe, store)
    current = plan(rows, recipe.generation.draft.samples, stages.all)
    table = RichTable("stage", "table", "ok", "truncated", "failed", "pending", "blocked", "to do")
    for stage in stages.all:
        count = current.counts[stage.name]
        numbers = (
            count.ok,
            count.truncated,
            count.failed,
            count.pending,
            count.blocked,
            current.todo[stage.name],
        )
        table.add_row(stage.name, stage.results.fingerprint, *map(str, numbers))
    console.print(table)
    run = Run(store, recipe.run.name)
    complete = run.read_json("manifest.json") is not None
    console.print(
        f"{store.url(run.path('')).rstrip('/')}: {'complete' if complete else 'not complete'}", soft_wrap=True
    )


def print_rows(recipe: Recipe, store: Store, console: Console, count: int, *, dropped: bool) -> None:
    """The first rows with all their texts, in the order of their keys."""
    stages, prompts = build_stages(recipe, store), prepare_prompts(recipe, store).table
    results = {stage.name: _by_key(stage.results.read()) for stage in stages.all}
    reasons = dropped_reasons(recipe, store, prompts, stages.all)
    shown = 0
    for prompt in train_rows(prompts).to_pylist():
        for sample in range(recipe.generation.draft.samples):
            key = (prompt["prompt_id"], sample)
            if shown == count or (dropped and key not in reasons):
                continue
            shown += 1
            _print_row(console, prompt, key, results, reasons.get(key))


def _print_row(
    console: Console,
    prompt: dict[str, Any],
    key: tuple[str, int],
    results: dict[str, dict[tuple[str, int], dict[str, Any]]],
    reason: str | None,
) -> None:
    console.rule(f"{key[0]} sample {key[1]}" + (f", dropped: {reason}" if reason else ""))
    console.print(f"[bold]prompt[/bold] ({prompt['source']})")
    console.print(prompt["prompt"], markup=False, highlight=False)
    for name, found in results.items():
        result = found.get(key)
        state = "not generated" if result is None else result["status"]
        verdict = f", verdict {result['verdict']}" if result and result["verdict"] else ""
        console.print(f"[bold]{name}[/bold] ({state}{verdict})")
        if result:
            console.print(result["text"] or result["error"] or "", markup=False, highlight=False)


def _load(recipe: Recipe, store: Store) -> tuple[Stages, pa.Table]:
    return build_stages(recipe, store), train_rows(prepare_prompts(recipe, store).table)


def _by_key(table: pa.Table) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["prompt_id"], row["sample"]): row for row in table.to_pylist()}
