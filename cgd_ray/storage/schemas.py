"""The pyarrow schemas of every table: the contract between phases."""

import pyarrow as pa

KEY = [pa.field("prompt_id", pa.string(), nullable=False), pa.field("sample", pa.int32(), nullable=False)]

HISTORY = pa.field("history", pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])))
"""The turns before a prompt; null where there are none. See `cgd_ray.prompts.conversation`."""

PROMPTS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),  # 32 hex digits, see cgd_ray.data.prompt_id
        pa.field("split", pa.string(), nullable=False),  # "train" or "heldout"
        pa.field("prompt", pa.string(), nullable=False),  # x, rendered by data.prompt_template
        pa.field("reference", pa.string()),  # y_ref
        pa.field("kind", pa.string()),  # kind of problem, if the source gives it
        pa.field("novel", pa.bool_(), nullable=False),  # a kind that is never trained on
        pa.field("source", pa.string(), nullable=False),  # FILE:ROW, for messages and inspection
        HISTORY,
    ]
)

RESULTS = pa.schema(
    [
        *KEY,
        pa.field("parent", pa.string(), nullable=False),  # digest of exactly the texts it was made from
        pa.field("digest", pa.string()),  # of `text`, from which the parents of later stages are made
        # "ok", "truncated", "over-long" (the prompt leaves no room for a completion), "quarantined" (the row crashes
        # the engine) or "failed" (to be tried again)
        pa.field("status", pa.string(), nullable=False),
        pa.field("text", pa.string()),  # null for failed and over-long rows
        pa.field("finish_reason", pa.string()),
        pa.field("verdict", pa.string()),  # "right" or "wrong"; critiques only
        pa.field("error", pa.string()),  # why it failed
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("model", pa.string(), nullable=False),  # identity of the model, see cgd_ray.models.resolve
        pa.field("attempt", pa.int32(), nullable=False),
    ]
)
"""Result of a generation or evaluation stage for one row. Under greedy decoding all but `attempt` is deterministic."""

TELEMETRY = pa.schema(
    [
        *KEY,
        pa.field("started", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("cached_tokens", pa.int32()),  # prompt tokens that came from the prefix cache
        pa.field("host", pa.string(), nullable=False),
    ]
)
"""Times and hosts of the results; a separate table, since they differ between runs."""

EXAMPLES = pa.schema(
    [
        *KEY,
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("draft", pa.string(), nullable=False),
        pa.field("critique", pa.string(), nullable=False),
        pa.field("refinement", pa.string(), nullable=False),
        pa.field("verdict", pa.string()),
        pa.field("answer", pa.string()),  # the teacher's direct answer, where it was generated
        pa.field("reference", pa.string()),
        HISTORY,
    ]
)
"""Curated rows, from which every training method takes its view."""

DROPPED = pa.schema(
    [
        *KEY,
        pa.field("stage", pa.string(), nullable=False),  # which text was at fault
        pa.field("reason", pa.string(), nullable=False),
    ]
)

ENCODED = pa.schema(
    [
        *KEY,
        pa.field("view", pa.string(), nullable=False),  # method whose view of the row this is
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("target_start", pa.int32(), nullable=False),  # first supervised position; all after it are, too
    ]
)
"""Tokenised training rows. The target is a suffix, so one number is the whole mask."""

SCORES = pa.schema(
    [
        *KEY,
        pa.field("context", pa.string(), nullable=False),  # see cgd_ray.analysis.contexts
        pa.field("nll", pa.list_(pa.float32()), nullable=False),  # nats, one per token of the refinement and its end
        pa.field("entropy", pa.list_(pa.float32()), nullable=False),
    ]
)
"""How uncertain one model is about one row's refinement under one context."""
