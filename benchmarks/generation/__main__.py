"""Run the same prompts, models and cores through five pipelines, interleaved.

    python -m benchmarks.generation --student DIR --teacher DIR [--rows 64] [--runs 5] [--distilabel PYTHON]

Sides: see the modules beside this one. Each side first runs once in each of its two settings; the better one enters
the interleaved runs (of ours, both). Prints and appends to `--output` a JSON line per run: total seconds (a process
from its start to its end), seconds without loading, and the share of rows whose texts equal those of the first run
(bare vLLM's). The medians follow at the end. The same command resumes from the lines of an interrupted one in
`--output`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.generation.work import IN_FLIGHT, KV_CACHE_GIB, Task
from benchmarks.lines import earlier, report
from cgd_ray.data.demo.problems import demo_rows
from cgd_ray.data.prompt_id import prompt_id

SETTINGS = {
    "bare": ("64", "256"),
    "processes": ("64", "256"),
    "ray_data_llm": ("staged", "streaming"),
    "distilabel_side": ("staged", "streaming"),
    "ours": ("staged", "streaming"),
}
REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    """Tune each side, interleave the runs, summarise them."""
    options = parse()
    task = make_task(options)
    runs: list[dict[str, Any]] = []
    measured = earlier(options.output)

    def measure(side: str, setting: str) -> None:
        measured[side, setting].append(run(side, replace(task, setting=setting), runs, options.output))

    chosen = []
    for side in (side for side in options.sides if side != "distilabel_side" or options.distilabel):
        for setting in SETTINGS[side]:
            if not measured[side, setting]:
                measure(side, setting)
        best = min(SETTINGS[side], key=lambda setting: measured[side, setting][0]["total_s"])
        chosen += [(side, setting) for setting in SETTINGS[side] if side == "ours" or setting == best]
    while min(len(measured[one]) for one in chosen) < options.runs:
        for side, setting in chosen:
            measure(side, setting)
    for one in chosen:
        medians = {name: statistics.median(line[name] for line in measured[one]) for name in ("total_s", "generate_s")}
        line = {"side": one[0], "setting": one[1], "median": medians, "runs": len(measured[one])}
        report(line, options.output)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", required=True, help="directory of a model")
    parser.add_argument("--teacher", required=True, help="directory of a model")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--max-tokens", type=int, default=256, help="of each stage")
    parser.add_argument("--dtype", default="float32", help="bfloat16: faster, but texts depend on the batch")
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="rows at a time, of ours and at least of bare")
    parser.add_argument("--compiled", action="store_true", help="compile the models, as on GPUs: of ours and bare only")
    parser.add_argument("--distilabel", default="", help="python of an environment with distilabel[openai]")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/generation.jsonl"))
    return parser.parse_args()


def make_task(options: argparse.Namespace) -> Task:
    """Make a task of demo problems, each once."""
    texts = dict.fromkeys(
        row.prompt for row, _ in zip(demo_rows(1, 2, novel=False), range(2 * options.rows), strict=False)
    )
    rows = [{"prompt_id": prompt_id(text), "prompt": text} for text in list(texts)[: options.rows]]
    limits = dict.fromkeys(("draft", "critique", "refine"), options.max_tokens)
    return Task(
        options.student,
        options.teacher,
        limits,
        rows,
        dtype=options.dtype,
        in_flight=options.in_flight,
        eager=not options.compiled,
        distilabel_python=options.distilabel,
    )


def run(side: str, task: Task, runs: list[dict[str, Any]], output: Path) -> dict[str, Any]:
    """Run one side once, in processes of its own."""
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB, "HF_HUB_OFFLINE": "1"}
    environment = os.environ | ({} if side == "ours" else threads)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        given, made = Path(folder) / "task.json", Path(folder) / "outcome.json"
        given.write_text(json.dumps(asdict(task)))
        command = [sys.executable, "-m", f"benchmarks.generation.{side}", str(given), str(made)]
        started = time.monotonic()
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False)
        seconds = time.monotonic() - started
        if done.returncode:
            raise SystemExit(
                f"{side} ({task.setting}) ended with {done.returncode}\n" + (Path(folder) / "log").read_text()[-4000:]
            )
        outcome = json.loads(made.read_text())
    line = {
        "side": side,
        "setting": task.setting,
        "total_s": round(seconds, 1),
        "generate_s": round(outcome["generate_s"], 1),
        "cached_tokens": outcome["cached_tokens"],
        "completion_tokens": outcome["completion_tokens"],
        "texts": outcome["texts"],
    }
    first = runs[0] if runs else line
    line["equal"] = equal(line["texts"], first["texts"])
    runs.append(line)
    report({name: value for name, value in line.items() if name != "texts"}, output)
    return line


def equal(texts: dict[str, dict[str, str]], expected: dict[str, dict[str, str]]) -> dict[str, float]:
    """Return the share of rows with the same text, by stage."""
    shares = {}
    for stage in ("draft", "critique", "refine"):
        keys = [key for key in expected if stage in expected[key]]
        same = sum(texts.get(key, {}).get(stage) == expected[key][stage] for key in keys)
        shares[stage] = round(same / max(1, len(keys)), 3)
    return shares


if __name__ == "__main__":
    main()
