"""A stage, which makes one completion per row, and the schemas of rows between operators."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from cgd_ray.config.generation import Sampling
from cgd_ray.inference.base import Decoding, Request
from cgd_ray.prompts.conversation import Turn, history_of, with_history
from cgd_ray.storage.fingerprint import derived_seed, parent_digest, text_digest
from cgd_ray.storage.schemas import HISTORY
from cgd_ray.storage.tables import Table

TEXTS = ("draft", "answer", "critique", "refine", "evaluation")
"""Stages whose texts a row can carry."""

DONE = pa.schema([pa.field("prompt_id", pa.string()), pa.field("sample", pa.int32())])
"""Rows after their last stage: their results are stored."""

WORK = pa.schema(
    [
        *DONE,
        pa.field("prompt", pa.string()),
        HISTORY,
        pa.field("reference", pa.string()),
        *(pa.field(name, pa.string()) for name in TEXTS),
        pa.field("todo", pa.list_(pa.string())),  # stages that the row lacks
    ]
)
"""Rows between operators, with their texts so far and the stages that they still lack."""

Row = dict[str, Any]

VERDICTS = ("right", "wrong")
_VERDICT_QUESTION = "So is the result of the student right or wrong? Answer with one word: right or wrong."
_VERDICT_TOKENS = 8


@dataclass(frozen=True)
class Stage:
    """One completion per row: its inputs, its request, and the table of its results."""

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
    asks_verdict: bool = False  # asked for in one more request if the completion ends without one
    must_say_something: bool = True  # an empty text is a failure; in evaluation it is a wrong answer
    again: frozenset[str] = frozenset({"failed"})  # statuses of results that the next run retries
    description: dict[str, Any] = field(default_factory=dict)  # content of the tables' fingerprint
    borders: tuple[str, ...] = ()  # borders of the shards that rows come from: no part holds results of two shards

    def parent(self, digests: dict[str, str]) -> str:
        """Return the digest of exactly the texts that a result is made from, given each text's digest by name."""
        return parent_digest(*(digests[name] for name in self.inputs))

    def parent_of(self, row: Row) -> str:
        """Return the same digest, given the texts."""
        texts = (name for name in self.inputs if name != "prompt")
        return self.parent({"prompt": prompt_digest(row), **{name: text_digest(row[name] or "") for name in texts}})

    def verdict_request(self, request: Request, text: str) -> Request:
        """Return the request for the verdict that a critique lacks, as the next turn of its conversation."""
        turns = (*request.turns, Turn("assistant", text), Turn("user", _VERDICT_QUESTION))
        decoding = replace(request.decoding, max_tokens=_VERDICT_TOKENS, temperature=0.0, choices=VERDICTS)
        return replace(request, key=f"{request.key}-verdict", turns=turns, decoding=decoding)

    def request(self, row: Row) -> Request:
        """Return the engine request for this row; each row has its own seed."""
        decoding = Decoding(
            max_tokens=self.sampling.max_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            seed=derived_seed(self.seed, self.name, row["prompt_id"], row["sample"]),
            chat_template_kwargs=self.sampling.chat_template_kwargs,
        )
        name = row_name(row)
        return Request(f"{self.name}-{name}", name, self.conversation(row), decoding)


def prompt_digest(row: Row) -> str:
    """Return the digest of a row's prompt, and of the turns before it if there are any."""
    turns = [[turn.role, turn.content] for turn in history_of(row.get("history"))]
    if not turns:
        return text_digest(row["prompt"])
    return text_digest(json.dumps([*turns, row["prompt"]], ensure_ascii=False), "conversation")


def row_name(row: Row) -> str:
    """Return the row's key as one word."""
    return f"{row['prompt_id']}-{row['sample']}"


@dataclass(frozen=True)
class BarePrompt:
    """x with the turns before it and nothing else: drafts, the teacher's direct answers, evaluation, inference."""

    def __call__(self, row: Row) -> tuple[Turn, ...]:
        """Return the conversation that asks for this row's completion."""
        return with_history(row["prompt"], history_of(row.get("history")))
