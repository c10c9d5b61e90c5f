"""(c) Chained Ray Data LLM processors. Setting: `staged` (one at a time, batches of 64) or `streaming` (of 16)."""

import time
from typing import Any

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from benchmarks.generation.work import IN_FLIGHT, KV_CACHE_GIB, MAX_MODEL_LEN, Outcome, Task, arguments, messages

STAGES = ("draft", "critique", "refine")
# The processor writes a column `prompt` of its own: the conversation as the template renders it.
KEPT = ("prompt_id", "problem", "draft", "critique", "refine", "whole")


def processor(stage: str, task: Task, batch: int) -> Any:
    """Build the processor of a stage; it cannot skip an incomplete row, which therefore generates one token."""
    small = {"enabled": True, "num_cpus": 0.1}
    config = vLLMEngineProcessorConfig(
        model_source=task.student if stage == "draft" else task.teacher,
        engine_kwargs={
            "dtype": task.dtype,
            "max_model_len": MAX_MODEL_LEN,
            "enforce_eager": True,
            "enable_prefix_caching": True,
            "max_num_seqs": IN_FLIGHT,
            "generation_config": "vllm",
            "distributed_executor_backend": "mp",
        },
        runtime_env={"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB}},
        placement_group_config={"bundles": [{"CPU": 1}]},
        batch_size=batch,
        concurrency=1,
        chat_template_stage=small,
        tokenize_stage=small,
        detokenize_stage=small,
    )
    limit = task.max_tokens[stage]

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        turns = (
            messages(stage, {**row, "prompt": row["problem"]}) if row["whole"] else [{"role": "user", "content": "-"}]
        )
        params = {"temperature": 0.0, "max_tokens": limit if row["whole"] else 1}
        return {"messages": turns, "sampling_params": params}

    def take(row: dict[str, Any]) -> dict[str, Any]:
        made = row["generated_text"] if row["whole"] else None
        kept = {name: row.get(name) for name in KEPT} | {stage: made}
        return kept | {"whole": row["whole"] and row["num_generated_tokens"] < limit}

    return build_processor(config, preprocess=ask, postprocess=take)


def main() -> None:
    """Run all three stages; loading cannot be separated here, so `generate_s` includes it."""
    task, out = arguments()
    # Eight CPUs for three engines on two cores: with fewer, operators that feed the engines wait for a core forever.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    started = time.monotonic()
    rows = ray.data.from_items(
        [{"prompt_id": row["prompt_id"], "problem": row["prompt"], "whole": True} for row in task.rows]
    )
    for stage in STAGES:
        rows = processor(stage, task, 64 if task.setting == "staged" else 16)(rows)
        if task.setting == "staged":
            rows = rows.materialize()
    texts = {
        row["prompt_id"]: {stage: row[stage] for stage in STAGES if row[stage] is not None} for row in rows.take_all()
    }
    Outcome(texts, time.monotonic() - started).write(out)


if __name__ == "__main__":
    main()
