"""The table of examples to the table of token ids, once per method, tokenizer and length."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import structlog

from cgd_ray.config.training import TrainingSection, ViewName
from cgd_ray.prompts.templates import PromptSet
from cgd_ray.runtime.spread import spread
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.encode import ChatEncoder, Encoded
from cgd_ray.training.formats import Contexts, Example, Lacking, view, view_name
from cgd_ray.training.shuffle import with_others

_FORMAT = 2  # counts up when the ids of an unchanged input change
log = structlog.get_logger(__name__)


@dataclass
class Counts:
    """What became of the examples."""

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
    """The encoded table, and what became of the examples."""

    table: Table
    counts: Counts


@dataclass(frozen=True)
class Encoding:
    """Everything that decides which ids an example becomes."""

    training: TrainingSection
    seed: int
    prompts: PromptSet
    encoder: ChatEncoder

    @property
    def contexts(self) -> Contexts:
        """What is written around the rows' texts."""
        return Contexts(self.prompts, self.training.context == "multi-turn")

    def describe(self, examples: Table) -> dict[str, Any]:
        """The content of the encoded table's fingerprint; settings that change nothing are left out."""
        training = self.training
        drawn = training.method == "mix" or "cgd-shuffled" in training.views
        return {
            "stage": "encoded",
            "format": _FORMAT,
            "examples": examples.fingerprint,
            "method": training.method,
            "views": sorted(training.views),
            "mix": training.mix if training.method == "mix" else None,
            "seed": self.seed if drawn else None,
            "context": self._template_sources(),
            "tokenizer": tokenizer_digest(self.encoder.tokenizer),
            "template_arguments": self.encoder.template_arguments,
            "max_length": training.max_length,
        }

    def encode(self, example: Example) -> tuple[ViewName, Encoded | Lacking]:
        """The row's view and its ids, or why it is left out: for all compared methods where one cannot use it.

        Over-long rows are left out whole, never cut.
        """
        name = view_name(example, self.training, self.seed)
        encoded = self._encode_as(name, example)
        for other in sorted(self.training.views - {name}):
            seen = self._encode_as(other, example)
            if isinstance(seen, Lacking) and isinstance(encoded, Encoded):
                return name, Lacking(f"{seen.reason} (as {other})")
        return name, encoded

    def _encode_as(self, name: ViewName, example: Example) -> Encoded | Lacking:
        conversation = view(example, name, self.contexts)
        if isinstance(conversation, Lacking):
            return conversation
        encoded = self.encoder.encode(conversation)
        if isinstance(encoded, Encoded) and len(encoded.input_ids) > self.training.max_length:
            return Lacking("longer than training.max_length")
        return encoded

    def _template_sources(self) -> dict[str, str]:
        used = {"cft": "cft" in self.training.views, "context": False, "again": False}
        if any(name.startswith("cgd") for name in self.training.views):
            used |= {"context": True, "again": self.contexts.multi_turn}
        return {name: getattr(self.prompts, f"{name}_source") for name, is_used in used.items() if is_used}


def encode_examples(examples: Table, encoding: Encoding) -> EncodedExamples:
    """Encode the examples, part by part (on the cluster where there are many), or find them encoded already."""
    content = encoding.describe(examples)
    table = Table(examples.store, "encoded", fingerprint(content), ENCODED)
    manifest = f"{table.folder}/manifest.json"
    if not table.store.exists(manifest):
        table.describe(content)
        total = Counts()
        for counts in spread(partial(_encode_part, examples, encoding, table), list(enumerate(examples.parts()))):
            total += counts
        table.store.write(manifest, json.dumps(asdict(total), indent=1, sort_keys=True).encode())
        log.info("examples encoded", table=table.folder, **asdict(total))
    return EncodedExamples(table, Counts(**json.loads(table.store.read(manifest))))


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of the vocabulary, the merges, the added tokens and the chat template."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True).encode())
    return digest.hexdigest()


def _encode_part(examples: Table, encoding: Encoding, table: Table, numbered: tuple[int, str]) -> Counts:
    number, source = numbered
    rows = [Example.from_row(row) for row in examples.read([source]).to_pylist()]
    if "cgd-shuffled" in encoding.training.views:
        rows = with_others(rows, encoding.seed)
    counts, part = Counts(), []
    for row in rows:
        name, encoded = encoding.encode(row)
        if isinstance(encoded, Lacking):
            counts.dropped[encoded.reason] = counts.dropped.get(encoded.reason, 0) + 1
            continue
        key = {"prompt_id": row.prompt_id, "sample": row.sample, "view": name}
        part.append({**key, "input_ids": encoded.input_ids, "target_start": encoded.target_start})
        counts.rows += 1
        counts.supervised_tokens += len(encoded.input_ids) - encoded.target_start
        counts.total_tokens += len(encoded.input_ids)
    if part:
        table.write_part(f"part-{number:06d}", part)
    return counts
