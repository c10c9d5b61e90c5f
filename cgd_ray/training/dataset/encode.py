"""Encode the table of examples as a table of token ids, once per method, tokenizer and length."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from cgd_ray.config.training import TrainingSection
from cgd_ray.methods import METHODS, Contexts, Example, MethodName, longest_text
from cgd_ray.prompts.chat_encoder import ChatEncoder, Encoded
from cgd_ray.prompts.conversation import SkippedRow
from cgd_ray.prompts.templates import PromptSet
from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.runs import JsonDict
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.mix import method_of_row
from cgd_ray.training.dataset.shuffled_critiques import with_others

_FORMAT = 3  # increases when the ids of an unchanged input change
log = structlog.get_logger(__name__)
Views = dict[MethodName, Encoded | SkippedRow]
"""One row as encoded for each method."""


@dataclass
class Counts:
    """Counts of encoded and dropped examples."""

    rows: int = 0
    supervised_tokens: int = 0
    total_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""

    def __iadd__(self, other: "Counts") -> "Counts":
        self.rows += other.rows
        self.supervised_tokens += other.supervised_tokens
        self.total_tokens += other.total_tokens
        self.dropped = dict(Counter(self.dropped) + Counter(other.dropped))
        return self


@dataclass(frozen=True)
class EncodedExamples:
    """The encoded table and its counts."""

    table: Table
    counts: Counts


@dataclass(frozen=True)
class Encoding:
    """Everything that determines the ids of an example."""

    training: TrainingSection
    seed: int
    prompts: PromptSet
    encoder: ChatEncoder

    @property
    def contexts(self) -> Contexts:
        """Texts around the rows' own texts."""
        return Contexts(self.prompts, self.training.context == "multi-turn")

    def table(self, examples: Table) -> Table:
        """Return the table of the encoded rows."""
        return Table(examples.store, "encoded", fingerprint(self.describe(examples)), ENCODED)

    def describe(self, examples: Table) -> JsonDict:
        """Return the content of the encoded table's fingerprint, without settings that change nothing."""
        training = self.training
        drawn = training.method == "mix" or self._shows_others
        return {
            "stage": "encoded",
            "format": _FORMAT,
            "examples": examples.fingerprint,
            "method": training.method,
            "views": sorted(training.methods),
            "mix": training.mix if training.method == "mix" else None,
            "seed": self.seed if drawn else None,
            "context": self._template_sources(),
            "tokenizer": tokenizer_digest(self.encoder.tokenizer),
            "template_arguments": self.encoder.template_arguments,
            "max_length": training.max_length,
            **({"closing": self.encoder.closing_of_thinking} if self.encoder.closing_of_thinking else {}),
        }

    def compared(self) -> list["Encoding"]:
        """Return the encodings of the compared methods that need the same views of every row, including this one."""
        methods = sorted({self.training.method, *self.training.compared_with})
        trainings = [self.training.model_copy(update={"method": method}) for method in methods]
        return [replace(self, training=training) for training in trainings if training.methods == self.training.methods]

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        """Return the rows of one part, each with the text that a view takes from another row."""
        return with_others(examples, self.seed) if self._shows_others else list(examples)

    def encode(self, example: Example) -> tuple[MethodName, Encoded | SkippedRow]:
        """Return the row's method and its ids, or why the row is dropped."""
        return self.chosen(example, self.as_views(example))

    def chosen(
        self, example: Example, views: dict[MethodName, Encoded | SkippedRow]
    ) -> tuple[MethodName, Encoded | SkippedRow]:
        """Return the row's method and its view, or why the row is dropped.

        A row that one compared method cannot use is dropped for all. Over-long rows are dropped whole, never truncated.
        """
        name = method_of_row(example, self.training, self.seed)
        if isinstance(views[name], Encoded):
            for other, seen in views.items():
                if isinstance(seen, SkippedRow):
                    return name, SkippedRow(f"{seen.reason} (as {other})")
        return name, views[name]

    def as_views(self, example: Example) -> Views:
        """Return the row in every view that is needed, the same for all compared methods."""
        return {name: self._encode_as(name, example) for name in sorted(self.training.methods)}

    def _encode_as(self, name: MethodName, example: Example) -> Encoded | SkippedRow:
        conversation = METHODS[name].conversation(example, self.contexts)
        if isinstance(conversation, SkippedRow):
            return conversation
        encoded = self.encoder.encode(conversation)
        if isinstance(encoded, Encoded) and len(encoded.input_ids) > self.training.max_length:
            return SkippedRow(f"longer than training.max_length, most of it {longest_text(example, conversation)}")
        return encoded

    def _template_sources(self) -> dict[str, str]:
        used = {METHODS[name].template for name in self.training.methods if METHODS[name].shows}
        names = [*used, *(["again"] if "context" in used and self.contexts.multi_turn else [])]
        return {name: getattr(self.prompts, f"{name}_source") for name in names}

    @property
    def _shows_others(self) -> bool:
        return any("other_critique" in METHODS[name].shows for name in self.training.methods)


def encode_examples(examples: Table, encoding: Encoding) -> EncodedExamples:
    """Encode the examples part by part (on the cluster if there are many), or reuse the encoded table.

    Compared methods need each other's views of every row, so their tables are made together.
    """
    wanted = encoding.table(examples)
    if not wanted.store.exists(_manifest(wanted)):
        _encode_together(examples, encoding.compared())
    return EncodedExamples(wanted, Counts(**json.loads(wanted.store.read(_manifest(wanted)))))


def _encode_together(examples: Table, encodings: list[Encoding]) -> None:
    lacking = [one for one in encodings if not examples.store.exists(_manifest(one.table(examples)))]
    for one in lacking:
        one.table(examples).describe(one.describe(examples))
    totals = [Counts() for _ in lacking]
    for counts in parallel_map(partial(_encode_part, examples, lacking), list(enumerate(examples.parts()))):
        for place, more in enumerate(counts):
            totals[place] += more
    for one, total in zip(lacking, totals, strict=True):
        table = one.table(examples)
        table.store.write(_manifest(table), json.dumps(asdict(total), indent=1, sort_keys=True).encode())
        log.info("examples encoded", method=one.training.method, table=table.folder, **asdict(total))


def _manifest(table: Table) -> str:
    return f"{table.folder}/manifest.json"


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of the vocabulary, the merges, the added tokens and the chat template."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True).encode())
    return digest.hexdigest()


def _encode_part(examples: Table, encodings: list[Encoding], numbered: tuple[int, str]) -> list[Counts]:
    """Write one part of every encoding's table and return the counts; all encodings need the same views."""
    number, source = numbered
    rows = encodings[0].prepared([Example.from_row(row) for row in examples.read([source]).to_pylist()])
    made = [_Part() for _ in encodings]
    for row in rows:
        views = encodings[0].as_views(row)
        for part, encoding in zip(made, encodings, strict=True):
            part.add(row, *encoding.chosen(row, views))
    for part, encoding in zip(made, encodings, strict=True):
        if part.rows:
            encoding.table(examples).write_part(f"part-{number:06d}", part.rows)
    return [part.counts for part in made]


@dataclass
class _Part:
    counts: Counts = field(default_factory=Counts)
    rows: list[JsonDict] = field(default_factory=list)

    def add(self, example: Example, name: MethodName, encoded: Encoded | SkippedRow) -> None:
        if isinstance(encoded, SkippedRow):
            self.counts += Counts(dropped={encoded.reason: 1})
            return
        key = {"prompt_id": example.prompt_id, "sample": example.sample, "view": name}
        self.rows.append({**key, "input_ids": encoded.input_ids, "target_start": encoded.target_start})
        tokens = len(encoded.input_ids)
        self.counts += Counts(rows=1, supervised_tokens=tokens - encoded.target_start, total_tokens=tokens)
