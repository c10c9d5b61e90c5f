"""Split prompts into training and held-out ones, by a prompt's hash, never by its place or the run's size."""

import hashlib
import heapq
import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from cgd_ray.config.data import ColumnData, DemoData
from cgd_ray.config.run import StorageSection
from cgd_ray.data.demo.problems import demo_rows
from cgd_ray.data.prompt_id import holdout_position, is_blank, prompt_id
from cgd_ray.data.rows import SourceRow, template_values
from cgd_ray.data.skipped import OnSkip, RowError, SkippedRows
from cgd_ray.data.sources import describe_source, iterate_rows
from cgd_ray.errors import ConfigError
from cgd_ray.prompts.conversation import with_system
from cgd_ray.prompts.templates import render, template_columns

SplitName = Literal["train", "heldout"]

# A template without the problem renders the same few texts endlessly; the demo repeats one in thirty.
_MOST_REPEATS = 1000
_LOOK_AHEAD = 1000  # rows that are checked for columns that only some rows have

_SEEN = """
pragma journal_mode = off;
pragma synchronous = off;
pragma cache_size = -16384;  -- KiB
create table seen (id blob primary key, answer blob) without rowid;
begin;
"""


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt with the row that it comes from."""

    identity: str
    text: str
    row: SourceRow

    @property
    def position(self) -> float:
        """Its position in [0, 1)."""
        return holdout_position(self.identity)


class PromptDeduplicator:
    """Passes each distinct prompt on once, the first of its kind, and counts the others.

    A reference that the first one lacks is taken from a later one; of different references, the first one counts. Ids
    are kept in SQLite, which creates a private file when they exceed its cache: ten million ids in a Python set would
    take a gigabyte.
    """

    def __init__(self, template: str) -> None:
        self.duplicates = 0
        self.answers: dict[str, str] = {}
        """References by prompt id, of prompts that were passed on without one."""
        self.contradictions = 0
        """Number of duplicates whose reference differs from that of the prompt that was passed on."""
        self.contradiction: str | None = None
        """FILE:ROW of the first contradiction."""
        self.skipped = SkippedRows()
        self._template = template
        self._seen = sqlite3.connect("", isolation_level=None)
        self._seen.executescript(_SEEN)

    def distinct(self, rows: Iterable[SourceRow]) -> Iterator[Prompt]:
        """The rows' rendered prompts without duplicates; rows without one are skipped.

        Raises:
            ConfigError: the template is wrong.
        """
        for row in rows:
            try:
                prompt = rendered(row, self._template)
            except RowError as error:
                self.skipped(error)
                continue
            identity = bytes.fromhex(prompt.identity)  # half the size of its text
            values = (identity, _digest(row.reference))
            if self._seen.execute("insert or ignore into seen values (?, ?)", values).rowcount:
                yield prompt
            else:
                self.duplicates += 1
                self._compare(prompt, *values)

    def _compare(self, prompt: Prompt, identity: bytes, answer: bytes | None) -> None:
        """Compare the reference of a duplicate with the first one."""
        if answer is None or prompt.row.reference is None:
            return
        [(known,)] = self._seen.execute("select answer from seen where id = ?", (identity,))
        if known is None:
            self._seen.execute("update seen set answer = ? where id = ?", (answer, identity))
            self.answers[prompt.identity] = prompt.row.reference
        elif known != answer:
            self.contradictions += 1
            self.contradiction = self.contradiction or prompt.row.source


def _digest(reference: str | None) -> bytes | None:
    """Digest of the end of a reference from its mark or box, or of the whole reference; None if there is none.

    Only grading extracts the exact answer, which would take minutes for ten million rows.
    """
    if reference is None or not reference.strip():
        return None
    mark = max(reference.rfind("####"), reference.rfind("\\boxed"))
    answer = reference[mark:] if mark >= 0 else reference
    return hashlib.blake2b(" ".join(answer.split()).encode(errors="replace"), digest_size=8).digest()


def rendered(row: SourceRow, template: str) -> Prompt:
    """Fill the prompt template from a row's columns with texts and numbers.

    Raises:
        ConfigError: the template is wrong.
        RowError: a column that it uses is null or of another type, it renders nothing, or the row's text is not valid
            Unicode.
    """
    named = template_columns(template, "data.prompt_template")
    values = template_values(row, named)
    try:
        text = render(template, "data.prompt_template", **values)
    except ConfigError as error:
        nulls = sorted(name for name in values if values[name] is None)
        if not nulls or named - values.keys():
            raise
        raise RowError(
            f"{row.source}: data.prompt_template uses the column {nulls[0]!r}, which is null here. Fix: correct the "
            f"row, or write {{% if {nulls[0]} %}} around it in the template",
            row.source,
            f"{nulls[0]} that is null",
        ) from error
    if is_blank(text):
        raise RowError(
            f"data.prompt_template: renders an empty prompt for {row.source}", row.source, "empty rendered prompt"
        )
    try:
        "".join([text, row.reference or "", *(turn.content for turn in row.history)]).encode()
    except UnicodeEncodeError as error:
        text = f"{row.source}: the text is not valid Unicode: {error.reason}"
        raise RowError(text, row.source, "not valid Unicode") from error
    return Prompt(prompt_id(text, row.history), text, row)


def split_source(
    data: ColumnData, storage: StorageSection, merger: PromptDeduplicator
) -> Iterator[tuple[Prompt, SplitName]]:
    """Distinct prompts of a source with columns, in source order, each with its split.

    A fraction holds out all positions below it, and reading stops at the last prompt that may be trained on. A
    count holds out the smallest positions of the whole source, which requires a second pass over it.

    Raises:
        ConfigError: the source or the template is wrong, or the count is not smaller than the number of
            distinct prompts.
    """
    count = data.holdout.count
    boundary = data.holdout.fraction if count is None else _boundary(data, storage, count)
    train = heldout = 0
    for prompt in all_prompts(data, storage, merger):
        if boundary is not None and prompt.position < boundary:
            heldout += 1
            yield prompt, "heldout"
        elif data.limit is None or train < data.limit:
            train += 1
            yield prompt, "train"
        if train == data.limit and (count is None or heldout == count):
            return


def all_prompts(data: ColumnData, storage: StorageSection, merger: PromptDeduplicator) -> Iterator[Prompt]:
    """Distinct prompts of a source with columns, in source order.

    Raises:
        ConfigError: the source or the template is wrong.
    """
    return merger.distinct(_filled(iterate_rows(data, storage, merger.skipped), data.prompt_template))


def _filled(rows: Iterator[SourceRow], template: str) -> Iterator[SourceRow]:
    """Set columns of the template that only other rows have to null; columns that no row has stay undefined."""
    needed, known = template_columns(template, "data.prompt_template"), set[str]()
    first = list(itertools.islice(rows, _LOOK_AHEAD))
    known.update(*(row.values for row in first))
    for row in itertools.chain(first, rows):
        known.update(row.values)
        lacking = (needed & known) - row.values.keys()
        yield replace(row, values=dict.fromkeys(lacking) | row.values) if lacking else row


def _rendered_all(rows: Iterator[SourceRow], data: ColumnData, on_skip: OnSkip) -> Iterator[Prompt]:
    for row in rows:
        try:
            yield rendered(row, data.prompt_template)
        except RowError as error:
            on_skip(error)


def split_demo(data: DemoData, seed: int, merger: PromptDeduplicator) -> Iterator[tuple[Prompt, SplitName]]:
    """Problems for training and for the held-out part, a third of which is of novel kinds.

    By position, half of the problems of seen kinds belong to the held-out part, whether they are used or not. The
    size of one part therefore never takes problems from the other.

    Raises:
        ConfigError: the template is wrong, or renders too few distinct prompts.
    """
    wanted = _demo_heldout(data)
    novel = wanted // 3
    missing: dict[SplitName, int] = {"train": data.limit, "heldout": wanted - novel}
    for prompt in _endless(_demo_rows(data, seed, novel=False), merger):
        split: SplitName = "heldout" if prompt.position < 0.5 else "train"
        if missing[split]:
            missing[split] -= 1
            yield prompt, split
        if not any(missing.values()):
            break
    for prompt in itertools.islice(_endless(_demo_rows(data, seed, novel=True), merger), novel):
        yield prompt, "heldout"


def _demo_rows(data: DemoData, seed: int, *, novel: bool) -> Iterator[SourceRow]:
    history = with_system((), data.system_prompt)
    return (replace(row, history=history) for row in demo_rows(seed, data.max_steps, novel=novel))


def _demo_heldout(data: DemoData) -> int:
    """Number of held-out problems; a fraction is a share of both parts together, as for other sources."""
    if data.holdout.fraction is None:
        return data.holdout.count or 0
    return round(data.limit * data.holdout.fraction / (1 - data.holdout.fraction))


def _endless(rows: Iterator[SourceRow], merger: PromptDeduplicator) -> Iterator[Prompt]:
    while True:
        prompt = next(merger.distinct(itertools.islice(rows, _MOST_REPEATS)), None)
        if prompt is None:
            raise ConfigError("data.prompt_template: renders the same text for every row. Fix: use {{ prompt }} in it")
        yield prompt


def _boundary(data: ColumnData, storage: StorageSection, count: int) -> float:
    """The position below which `count` distinct prompts of the whole source fall."""
    smallest: list[float] = []  # negated: a heap whose top is the largest of the count + 1 smallest
    members: set[float] = set()
    read = 0
    skipped = SkippedRows()  # counted when the rows are read again
    for prompt in _rendered_all(_filled(iterate_rows(data, storage, skipped), data.prompt_template), data, skipped):
        position, read = prompt.position, read + 1
        if position in members or (len(smallest) > count and position > -smallest[0]):
            continue
        members.add(position)
        if len(smallest) <= count:
            heapq.heappush(smallest, -position)
        else:
            members.discard(-heapq.heappushpop(smallest, -position))
    if len(smallest) <= count:
        skipped.require_few(read + skipped.count, data.max_skipped_fraction)  # skipped rows may be the reason
        raise ConfigError(
            f"data.holdout.count {count} is not smaller than the {len(smallest)} distinct prompts of "
            f"{describe_source(data)}. Fix: lower it, or use data.holdout.fraction"
        )
    return -smallest[0]
