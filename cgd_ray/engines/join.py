"""The one join of prompts with what the stages made of them: by key, and by the digest of the texts."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from cgd_ray.engines.chain import TEXTS, Row, Stage

_PROMPT = ["prompt_id", "prompt", "reference", "source"]


@dataclass(frozen=True)
class JoinedRow:
    """One sample of one prompt, with each stage's result."""

    texts: Row
    """`prompt_id`, `sample`, `prompt`, `reference`, `source`, and each stage's text, None where it did not succeed."""
    results: dict[str, Row | None]
    """By stage, upstream first: the row of its table (RESULTS schema), None where there is none."""


def join_results(prompts: pa.Table, samples: int, stages: list[Stage]) -> Iterator[JoinedRow]:
    """Every (prompt, sample) with its results, in the order of the prompts.

    A result counts only if it was made from exactly the texts that the row has now (its parent digest).

    Args:
        prompts: rows of the PROMPTS schema.
        samples: drafts per prompt.
        stages: upstream first.
    """
    results = {stage.name: stage.results.read().to_pylist() for stage in stages}
    by_key = {
        name: {(row["prompt_id"], row["sample"], row["parent"]): row for row in rows} for name, rows in results.items()
    }
    for prompt in prompts.select(_PROMPT).to_pylist():
        for sample in range(samples):
            joined = JoinedRow({**dict.fromkeys(TEXTS), **prompt, "sample": sample}, {})
            for stage in stages:
                result = by_key[stage.name].get((prompt["prompt_id"], sample, stage.parent(joined.texts)))
                joined.results[stage.name] = result
                if result and result["status"] == "ok":
                    joined.texts[stage.name] = result["text"]
            yield joined
