"""The table of examples to the table of token ids, once per method, tokenizer and length."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import structlog

from cgd_ray.config.training import TrainingSection, ViewName
from cgd_ray.prompts.templates import PromptSet
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.encode import ChatEncoder, Encoded
from cgd_ray.training.formats import Example, Lacking, view, view_name

_ROWS_PER_PART = 4096
_FORMAT = 1  # counts up when the ids of an unchanged input change
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EncodedExamples:
    """The encoded table and what became of the examples."""

    table: Table
    rows: int
    supervised_tokens: int
    total_tokens: int
    dropped: dict[str, int]
    """Rows left out, by reason."""


@dataclass(frozen=True)
class Encoding:
    """Everything that decides which ids an example becomes."""

    training: TrainingSection
    seed: int
    prompts: PromptSet
    encoder: ChatEncoder

    def describe(self, examples: Table) -> dict[str, Any]:
        """The content of the encoded table's fingerprint; settings that change nothing are left out."""
        mixed = self.training.method == "mix"
        views: set[ViewName] = set(self.training.mix) if self.training.method == "mix" else {self.training.method}
        return {
            "stage": "encoded",
            "format": _FORMAT,
            "examples": examples.fingerprint,
            "method": self.training.method,
            "mix": self.training.mix if mixed else None,
            "seed": self.seed if mixed else None,
            "context": self.prompts.context_source if "cgd" in views else None,
            "tokenizer": tokenizer_digest(self.encoder.tokenizer),
            "template_arguments": self.encoder.template_arguments,
            "max_length": self.training.max_length,
        }

    def encode(self, example: Example) -> tuple[ViewName, Encoded | Lacking]:
        """The row's view and its ids, or why it is left out. Over-long rows are left out whole, never cut."""
        name = view_name(example, self.training, self.seed)
        conversation = view(example, name, self.prompts)
        if isinstance(conversation, Lacking):
            return name, conversation
        encoded = self.encoder.encode(conversation)
        if isinstance(encoded, Encoded) and len(encoded.input_ids) > self.training.max_length:
            return name, Lacking("longer than training.max_length")
        return name, encoded


def encode_examples(examples: Table, encoding: Encoding) -> EncodedExamples:
    """Encode the examples, or find them encoded already."""
    content = encoding.describe(examples)
    table = Table(examples.store, "encoded", fingerprint(content), ENCODED)
    manifest = f"{table.folder}/manifest.json"
    if not table.store.exists(manifest):
        table.describe(content)
        counts = _write_rows(examples, encoding, table)
        table.store.write(manifest, json.dumps(counts, indent=1, sort_keys=True).encode())
        log.info("examples encoded", table=table.folder, **counts)
    return EncodedExamples(table=table, **json.loads(table.store.read(manifest)))


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of the vocabulary, the merges, the added tokens and the chat template."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True).encode())
    return digest.hexdigest()


def _write_rows(examples: Table, encoding: Encoding, table: Table) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    rows = supervised = total = 0
    for number, batch in enumerate(examples.read().to_batches(max_chunksize=_ROWS_PER_PART)):
        part = []
        for row in batch.to_pylist():
            name, encoded = encoding.encode(Example.from_row(row))
            if isinstance(encoded, Lacking):
                dropped[encoded.reason] += 1
                continue
            key = {"prompt_id": row["prompt_id"], "sample": row["sample"], "view": name}
            part.append({**key, "input_ids": encoded.input_ids, "target_start": encoded.target_start})
            supervised += len(encoded.input_ids) - encoded.target_start
            total += len(encoded.input_ids)
        rows += len(part)
        table.write_part(f"part-{number:06d}", part)
    return {"rows": rows, "supervised_tokens": supervised, "total_tokens": total, "dropped": dict(dropped)}
