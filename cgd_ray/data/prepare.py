"""The prompts table: every prompt once, rendered, with its split and its reference."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import pyarrow as pa
import structlog

from cgd_ray.config.data import ColumnData, DemoData
from cgd_ray.config.recipe import Recipe
from cgd_ray.data.demo.problems import DEMO_VERSION
from cgd_ray.data.external_sort import SortedRows
from cgd_ray.data.skipped import SkippedRows, require_few
from cgd_ray.data.sources import describe_source, source_identity
from cgd_ray.data.splits import Prompt, PromptDeduplicator, SplitName, split_demo, split_source
from cgd_ray.errors import ConfigError
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.runs import JsonDict
from cgd_ray.storage.schemas import PROMPTS
from cgd_ray.storage.tables import PART_ROWS, Table

READ_ROWS = 50_000
"""Prompts held in memory at a time."""


@dataclass(frozen=True)
class PreparedPrompts:
    """The complete prompts table of a recipe."""

    table: Table
    train: int
    heldout: int
    duplicates: int
    """Rows that were merged into an earlier one with the same prompt."""

    reused: bool
    """Whether the table was complete before."""

    skipped: int = 0
    """Rows that could not be used."""

    contradictions: int = 0
    """Merged rows whose reference differs from the one that was kept."""

    systems: int = 0
    """Prompts with a system turn before them."""

    exchanges: int = 0
    """Largest number of question and answer pairs before a prompt."""

    references: int | None = None
    """Training prompts that had a reference when they were read; None if the table has no such count."""

    @property
    def read(self) -> int:
        """Rows read from the source."""
        return self.train + self.heldout + self.duplicates + self.skipped


@dataclass
class _Counts:
    train: int = 0
    heldout: int = 0
    duplicates: int = 0
    skipped: int = 0
    contradictions: int = 0
    systems: int = 0
    exchanges: int = 0

    references: int = 0

    def counted(self, row: JsonDict) -> JsonDict:
        """Count the row (PROMPTS schema) and return it."""
        roles = Counter(turn["role"] for turn in row["history"] or ())
        self.train += row["split"] == "train"
        self.heldout += row["split"] == "heldout"
        self.references += row["split"] == "train" and bool((row["reference"] or "").strip())
        self.systems += bool(roles["system"])
        self.exchanges = max(self.exchanges, roles["user"])
        return row


def prepare_prompts(recipe: Recipe, store: Store) -> PreparedPrompts:
    """Write the prompts table of a recipe, unless it is complete.

    Its fingerprint covers the data section, the seed of demo problems and the content of the source.
    `table.json` with the counts is written last: a table that has it is complete. After an interrupted call, the same
    parts are written again.

    Raises:
        ConfigError: the source or the template is wrong, there is nothing to train on, or evaluation is
            enabled and nothing is held out.
    """
    table, description, reused = _written(recipe, store)
    prepared = PreparedPrompts(table, **description["counts"], reused=reused)
    if isinstance(recipe.data, ColumnData) and prepared.skipped:  # the table may come from a run that allowed more
        require_few(description["skipped"], prepared.skipped, prepared.read, recipe.data.max_skipped_fraction)
    _require_prompts(recipe, prepared)
    log = structlog.get_logger(__name__)
    log.info("prompts", **description["counts"], reused=reused, table=table.folder)
    if reasons := description.get("skipped", {}).get("reasons"):
        log.warning("rows of the source are skipped; `cgd inspect --skipped` shows them", **reasons)
    return prepared


def _written(recipe: Recipe, store: Store) -> tuple[Table, JsonDict, bool]:
    """The table, its description, and whether it was complete before."""
    table, content = prompts_table(recipe, store)
    if (description := table.description()) is not None:
        return table, description, True
    counts, skipped = _write(recipe, table)
    description = {"content": content, "counts": asdict(counts), "skipped": skipped.document()}
    table.describe(description)
    return table, description, False


def prompts_table(recipe: Recipe, store: Store) -> tuple[Table, JsonDict]:
    """The recipe's prompts table, which may not exist yet, and the content of its fingerprint."""
    content = _content(recipe)
    return Table(store, "prompts", fingerprint(content), PROMPTS), content


def _content(recipe: Recipe) -> JsonDict:
    # Leave out settings that change no row, and, at their defaults, settings that older tables lack.
    data = recipe.data.model_dump(mode="json", exclude={"max_skipped_fraction"})
    if data.get("messages_column") is None:
        data = {name: value for name, value in data.items() if name not in ("messages_column", "system_column")}
    for name in ("system_prompt", "choices_column", "choices_columns"):
        if not data.get(name):
            data.pop(name, None)
    if isinstance(recipe.data, DemoData):
        return {"data": data | {"seed": _demo_seed(recipe, recipe.data)}, "source": {"demo": DEMO_VERSION}}
    return {"data": data, "source": source_identity(recipe.data, recipe.storage)}


def _demo_seed(recipe: Recipe, data: DemoData) -> int:
    return recipe.run.seed if data.seed is None else data.seed


def skipped_rows(recipe: Recipe, store: Store) -> list[dict[str, str]]:
    """Source, reason and error of the first rows that cannot be used; reads the source if no run has read it.

    Raises:
        ConfigError: the source or the template is wrong.
    """
    _, description, _ = _written(recipe, store)
    rows: list[dict[str, str]] = description.get("skipped", {}).get("rows", [])
    return rows


def _write(recipe: Recipe, table: Table) -> tuple[_Counts, SkippedRows]:
    merger, counts = PromptDeduplicator(recipe.data.prompt_template), _Counts()
    prompts = _split(recipe, merger)
    with SortedRows(PROMPTS) as ordered:
        while rows := [counts.counted(_row(prompt, split)) for prompt, split in islice(prompts, READ_ROWS)]:
            ordered.add(rows)
        for number, part in enumerate(ordered.parts(PART_ROWS)):
            table.write_part(f"part-{number:06d}", _answered(part, merger.answers))
    counts.duplicates, counts.skipped = merger.duplicates, merger.skipped.count
    counts.contradictions = merger.contradictions
    if merger.contradictions:
        structlog.get_logger(__name__).warning(
            "prompts occur again with other references; the first reference is kept",
            rows=merger.contradictions,
            first=merger.contradiction,
        )
    return counts, merger.skipped


def _answered(rows: pa.Table, answers: dict[str, str]) -> pa.Table:
    """Fill in references that only later rows of the same prompt had."""
    if not answers:
        return rows
    pairs = zip(rows["prompt_id"].to_pylist(), rows["reference"].to_pylist(), strict=True)
    filled = [answers.get(identity, reference) for identity, reference in pairs]
    return rows.set_column(rows.schema.get_field_index("reference"), "reference", pa.array(filled, pa.string()))


def _split(recipe: Recipe, merger: PromptDeduplicator) -> Iterator[tuple[Prompt, SplitName]]:
    if isinstance(recipe.data, DemoData):
        return split_demo(recipe.data, _demo_seed(recipe, recipe.data), merger)
    return split_source(recipe.data, recipe.storage, merger)


def _row(prompt: Prompt, split: SplitName) -> JsonDict:
    return {
        "prompt_id": prompt.identity,
        "split": split,
        "prompt": prompt.text,
        "history": [turn.as_message() for turn in prompt.row.history] or None,
        "reference": prompt.row.reference,
        "kind": prompt.row.kind,
        "novel": prompt.row.novel,
        "source": prompt.row.source,
    }


def _require_prompts(recipe: Recipe, prepared: PreparedPrompts) -> None:
    where = "the demo" if isinstance(recipe.data, DemoData) else describe_source(recipe.data)
    if prepared.train == 0:
        raise ConfigError(
            f"data.holdout: all {prepared.heldout} distinct prompts of {where} are held out and none is left to "
            "train on. Fix: lower data.holdout.fraction, use data.holdout.count, or give more prompts"
        )
    for key in recipe.needs_references:
        if prepared.references == 0:
            raise ConfigError(
                f"{key} needs references and none of {where} has one. Fix: name another data.reference_column"
            )
    if recipe.evaluation.asks_heldout and prepared.heldout == 0:
        raise ConfigError(
            f"data.holdout: none of the {prepared.train} distinct prompts of {where} is held out and evaluation "
            "needs some. Fix: raise data.holdout.fraction, use data.holdout.count, or set evaluation.enabled=false"
        )
