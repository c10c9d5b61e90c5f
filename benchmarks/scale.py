"""How generation scales with the number of rows: the scripted engine, so that all time is ours.

    python benchmarks/scale.py 10000 100000 1000000 [--root DIRECTORY]

Each size is a process of its own: prepare the prompts, generate all three stages, take a tenth of the refinements away,
and plan again as a resumed run does. Prints a JSON line per size: rows/s through all stages, the driver's largest
resident memory, the objects written, and the seconds from start to plan of the resumed run.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.data.prepare import prepare_prompts
from cgd_ray.generation.planning import plan
from cgd_ray.generation.run import join_of, run_generation
from cgd_ray.runtime.session import ray_session
from cgd_ray.storage.filesystem import Store

WORDS = "A shop sells apples by the crate. How many apples are in the crates, and why? "


def main() -> None:
    """Measure each size in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for rows in arguments.rows:
        if arguments.here:
            print(json.dumps(measure(rows, arguments.root)), flush=True)
            continue
        with tempfile.TemporaryDirectory(dir=arguments.root) as root:
            subprocess.run([sys.executable, __file__, str(rows), "--root", root, "--here"], check=True)


def measure(rows: int, root: Path) -> dict[str, Any]:
    """One size from nothing to a resumed run."""
    made = recipe(rows, root)
    store, figures = Store(str(root)), {"rows": rows}
    prompts = timed(figures, "prepare_s", lambda: prepare_prompts(made, store))
    with ray_session():
        result = timed(figures, "generate_s", lambda: run_generation(made, store, prompts.table))
        figures["refined"] = result.counts["refine"]["ok"]
        parts = result.stages.refine.results.parts()
        for part in parts[::10]:
            store.remove(f"{result.stages.refine.results.folder}/{part}")
        left = timed(figures, "plan_s", lambda: plan(join_of(made, prompts.table, result.stages)))
    figures["to_do_share"] = round(left.todo["refine"] / rows, 3)
    figures["rows_per_s"] = round(rows / figures["generate_s"])
    figures["driver_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures["objects"] = sum(1 for _ in root.rglob("*.parquet"))
    return figures


def timed(figures: dict[str, Any], name: str, work: Any) -> Any:
    """Do it and note the seconds."""
    started = time.monotonic()
    result = work()
    figures[name] = round(time.monotonic() - started, 1)
    return result


def recipe(rows: int, root: Path) -> Recipe:
    """Prompts of the size of word problems, on two scripted engines that answer at once."""
    data = root / "data.jsonl"
    with data.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"prompt": f"Problem {number}. {WORDS * 3}", "gold": str(number)}) + "\n")
    engine = {"type": "scripted", "max_in_flight": 2048}
    return parse_recipe(
        {
            "run": {"name": "scale", "root": str(root)},
            "storage": {"flush_rows": 4096},
            "data": {"type": "jsonl", "path": str(data), "reference_column": "gold", "holdout": {"count": 1}},
            "student": {"model": "student", "engine": engine},
            "teacher": {"engine": {**engine, "model": "teacher"}},
            "generation": {"execution": "streaming"},
        },
        "benchmarks/scale.py",
    )


if __name__ == "__main__":
    main()
