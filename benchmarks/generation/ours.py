"""(e) cgd-ray. Setting: `staged` or `streaming`."""

import sys
import tempfile

from benchmarks.generation.work import KV_CACHE_GIB, MAX_MODEL_LEN, Outcome, Task, arguments
from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.generation.run import GenerationResult, run_generation
from cgd_ray.runtime.device import asks_for_gpus
from cgd_ray.runtime.session import ray_session
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.rows import Join
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import PROMPTS
from cgd_ray.storage.tables import Table

EMPTY = {"split": "train", "reference": None, "kind": None, "novel": False, "source": "benchmark"}


def recipe(task: Task, root: str) -> Recipe:
    """Return the task as a recipe."""
    engine = {
        "type": "vllm",
        "dtype": task.dtype,
        "max_model_len": MAX_MODEL_LEN,
        "max_in_flight": task.in_flight,
        "enforce_eager": task.eager,
        "kv_cache_gib": float(KV_CACHE_GIB),
    }
    if task.setting == "streaming" and asks_for_gpus():
        engine["gpus_per_worker"] = 0.5  # both engines on one GPU
    limits = {stage: {"max_tokens": limit} for stage, limit in task.max_tokens.items()}
    return parse_recipe(
        {
            "run": {"name": "benchmark", "root": root},
            "data": {"type": "demo"},  # not read: the prompts table is written below
            "student": {"model": task.student, "engine": engine},
            "teacher": {"engine": {**engine, "model": task.teacher}},
            "generation": {"execution": task.setting, **limits},
            "evaluation": {"enabled": False},
        },
        sys.argv[0],
    )


def main() -> None:
    """Run all three stages."""
    task, out = arguments()
    with tempfile.TemporaryDirectory() as root, ray_session():
        made = recipe(task, root)
        store = Store(root)
        prompts = Table(store, "prompts", "benchmark", PROMPTS)
        prompts.write_part(
            "part-000000", [{**EMPTY, **row} for row in sorted(task.rows, key=lambda row: row["prompt_id"])]
        )
        result = run_generation(open_run(made, store), prompts)
        texts = {
            row.texts["prompt_id"]: {stage: found["text"] for stage, found in row.results.items() if found}
            for row in Join(prompts, made.generation.draft.samples, result.stages.all)
        }
        metrics = result.metrics.values()
        cached, completed = (
            sum(int(counted[f"{kind}_tokens"]) for counted in metrics) for kind in ("cached", "completion")
        )
        Outcome(texts, busy(result), cached, completed).write(out)


def busy(result: GenerationResult) -> float:
    """Return the seconds from the first start to the last end; for engines in turn, the sum over both."""
    spans = {
        stage: (counted["started"], counted["started"] + counted["seconds"])
        for stage, counted in result.metrics.items()
    }
    groups = [list(spans)] if result.execution == "streaming" else [["draft"], ["critique", "refine"]]
    return sum(max(spans[s][1] for s in group) - min(spans[s][0] for s in group) for group in groups)


if __name__ == "__main__":
    main()
