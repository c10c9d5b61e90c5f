"""Train the same rows, model, batch and threads with our loop, TRL's and LLaMA-Factory's, interleaved.

    python -m benchmarks.training --model DIR [--trl PYTHON] [--llama-factory PYTHON] [--rows 64] [--runs 5]

Each side runs in each of its settings; of the other sides' packings, only the better one after the first round.
`PYTHON` is that of an environment with the library and a torch of this repository's version.
Prints and appends to `--output` a JSON line per run, and the medians at the end: supervised tokens per second inside
optimiser steps of a second epoch, and peak memory of the process. `floor` is the time of the matrix products alone at
the rate that large ones reach here. The same command resumes from the lines of an interrupted one in `--output`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.lines import earlier, report
from benchmarks.training.work import Task
from cgd_ray.data.demo.problems import demo_rows
from cgd_ray.prompts.chat_encoder import ChatEncoder, Encoded
from cgd_ray.prompts.conversation import Conversation, with_history

SETTINGS = {
    "ours": ("2-1024", "2-4096", "2-4096-compiled"),
    "trl_side": ("packed-512", "packed-1024", "defaults"),
    "llama_factory_side": ("packed-512", "packed-1024", "defaults"),
    "floor": ("",),
}
REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    """Interleave the runs and summarise them."""
    options = parse()
    task = make_task(options)
    measured = earlier(options.output, task.digest)
    pythons = {"trl_side": options.trl, "llama_factory_side": options.llama_factory}
    chosen = [(side, setting) for side in SETTINGS for setting in SETTINGS[side] if pythons.get(side) != ""]

    def measure(rounds: int) -> None:
        while any(lacking := [one for one in chosen if len(measured[one]) < rounds]):
            for side, setting in lacking:
                line = run(side, replace(task, setting=setting), pythons.get(side, sys.executable))
                measured[side, setting].append(line)
                report(line, options.output)

    measure(1)
    for library in pythons:
        packed = [one for one in chosen if one[0] == library and one[1].startswith("packed")]
        for one in sorted(packed, key=lambda one: -measured[one][0]["supervised_per_s"])[1:]:
            chosen.remove(one)
    measure(options.runs)
    for one in chosen:
        names = ("supervised_per_s", "peak_mib")
        medians = {name: statistics.median(line[name] for line in measured[one]) for name in names}
        line = {"side": one[0], "setting": one[1], "median": medians, "runs": len(measured[one]), "task": task.digest}
        report(line, options.output)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="directory of a chat model")
    parser.add_argument("--trl", default="", help="python of an environment with TRL")
    parser.add_argument("--llama-factory", default="", help="python of an environment with LLaMA-Factory")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training.jsonl"))
    return parser.parse_args()


def make_task(options: argparse.Namespace) -> Task:
    """Make a task of demo problems as a chat model's turns, with their solutions as targets."""
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(options.model), {})
    rows = [(row.input_ids, row.target_start) for row in encoded_rows(encoder, options.rows)]
    return Task(options.model, rows, options.batch_size, options.precision, options.threads)


def encoded_rows(encoder: ChatEncoder, count: int) -> Iterator[Encoded]:
    """Yield up to `count` rows of uneven lengths: one to three problems in a turn, their solutions as target."""
    problems = iter(demo_rows(1, 2, novel=False))
    for number in range(count):
        several = [next(problems) for _ in range(1 + number % 3)]
        user = "\n\n".join(problem.prompt for problem in several)
        row = encoder.encode(
            Conversation(with_history(user), "\n\n".join(str(problem.reference) for problem in several))
        )
        if isinstance(row, Encoded):
            yield row


def run(side: str, task: Task, python: str) -> dict[str, Any]:
    """Run one side once, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(task.threads)}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        given, made = Path(folder) / "task.json", Path(folder) / "outcome.json"
        given.write_text(json.dumps(asdict(task)))
        command = [python, "-m", f"benchmarks.training.{side}", str(given), str(made)]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            text = (Path(folder) / "log").read_text()[-4000:]
            raise SystemExit(f"{side} ({task.setting}) ended with {done.returncode}\n{text}")
        outcome = json.loads(made.read_text())
    return {
        "side": side,
        "setting": task.setting,
        "supervised_per_s": round(task.supervised / outcome["steps_s"], 2),
        "peak_mib": round(outcome["peak_mib"]),
        "steps": outcome["steps"],
        "losses": [round(loss, 4) for loss in outcome["losses"]],
        "task": task.digest,
    }


if __name__ == "__main__":
    main()
