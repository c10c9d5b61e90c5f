"""(a) Bare vLLM: one engine per model, one after the other, batch calls, no pipeline. Setting: `max_num_seqs`."""

import gc
from typing import Any

from vllm import LLM, SamplingParams

from benchmarks.generation.work import MAX_MODEL_LEN, Clock, Outcome, Task, arguments, messages


def load(model: str, task: Task) -> LLM:
    """Load one engine with all threads and the settings of cgd-ray's engines."""
    return LLM(
        model=model,
        dtype=task.dtype,
        max_model_len=MAX_MODEL_LEN,
        enforce_eager=task.eager,
        enable_prefix_caching=True,
        max_num_seqs=max(int(task.setting), task.in_flight),
        generation_config="vllm",
    )


def ask(engine: LLM, stage: str, task: Task, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one batch call; returns the rows whose texts are complete."""
    params = SamplingParams(temperature=0.0, max_tokens=task.max_tokens[stage])
    outputs = engine.chat([messages(stage, row) for row in rows], params, use_tqdm=False)
    done = []
    for row, output in zip(rows, outputs, strict=True):
        row["completed"] = row.get("completed", 0) + len(output.outputs[0].token_ids)
        row[stage], row["cached"] = output.outputs[0].text, row.get("cached", 0) + (output.num_cached_tokens or 0)
        if output.outputs[0].finish_reason == "stop":
            done.append(row)
    return done


def outcome(rows: list[dict[str, Any]], clock: Clock) -> Outcome:
    """Return the outcome of the finished rows."""
    texts = {row["prompt_id"]: {s: row[s] for s in ("draft", "critique", "refine") if s in row} for row in rows}
    cached, completed = (sum(row.get(count, 0) for row in rows) for count in ("cached", "completed"))
    return Outcome(texts, clock.seconds, cached, completed)


def main() -> None:
    """Run all three stages in one process."""
    task, out = arguments()
    clock, rows = Clock(), [dict[str, Any](row) for row in task.rows]
    student = load(task.student, task)
    with clock:
        drafted = ask(student, "draft", task, rows)
    student.llm_engine.engine_core.shutdown()
    del student
    gc.collect()
    teacher = load(task.teacher, task)
    with clock:
        ask(teacher, "refine", task, ask(teacher, "critique", task, drafted))
    outcome(rows, clock).write(out)


if __name__ == "__main__":
    main()
