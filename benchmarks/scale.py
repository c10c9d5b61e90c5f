"""Measure how generation scales with the number of rows: with the scripted engine, all time is ours.

    python -m benchmarks.scale 10000 100000 1000000 [--root DIRECTORY] [--s3]

Each size is a process of its own that prepares the prompts and generates all three stages. Then a tenth of the
refinements is deleted and the same run is started again, with `--s3` once more through an S3 server, and timed to its
first new refinements on storage. Prints a JSON line per size: rows/s through all stages with start-up, the largest
resident memory of the driver, the largest memory of its own (without what it shares with others) of the process that
runs Ray Data's executor and of the one that counts, the largest use of the object store, the objects written, and the
seconds from the start of the resumed process to its first part.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
from ray._private.internal_api import memory_summary

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.data.prepare import prepare_prompts
from cgd_ray.generation.run import run_generation
from cgd_ray.runtime.session import ray_session
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from tests.servers import S3Server, s3_server

WORDS = "A shop sells apples by the crate. How many apples are in the crates, and why? "
_LOOK_SECONDS = 2.0
_PROCESSES = {"ray::_stream": "executor_peak_mib", "ray::_Coordinator": "ledger_peak_mib"}

T = TypeVar("T")


def main() -> None:
    """Measure each size in fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("PHASE", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for rows in arguments.rows:
        if arguments.child:
            phase, root = arguments.child
            made = recipe(rows, arguments.root, root, os.environ.get("AWS_ENDPOINT_URL"))
            print(json.dumps(generate(made) if phase == "generate" else resume(made)), flush=True)
            continue
        with tempfile.TemporaryDirectory(dir=arguments.root) as folder, s3_server(Path(folder)) as server:
            print(json.dumps(measure(rows, Path(folder), server if arguments.s3 else None)), flush=True)


def measure(rows: int, folder: Path, server: S3Server | None) -> dict[str, Any]:
    """Measure one size from an empty root to a resumed run, locally and, with a server, on S3."""
    data, root = folder / "data", folder / S3Server.bucket / "root"
    data.mkdir()
    write_prompts(data, rows)
    figures = {"rows": rows} | child(rows, data, "generate", str(root))
    figures["objects"] = sum(1 for _ in root.rglob("*.parquet"))
    drop_a_tenth(root)
    figures["resume_s"] = first_part_seconds(rows, data, root, str(root))
    if server:
        drop_a_tenth(root)
        figures["resume_s3_s"] = first_part_seconds(
            rows, data, root, server.url("root"), AWS_ENDPOINT_URL=server.endpoint
        )
    return figures


def generate(made: Recipe) -> dict[str, Any]:
    """Generate all stages of all rows."""
    store, figures = Store(made.run.root, made.storage), dict[str, Any]()
    prompts = timed(figures, "prepare_s", lambda: prepare_prompts(made, store))
    with ray_session(), largest(figures):
        result = timed(figures, "generate_s", lambda: run_generation(open_run(made, store), prompts.table))
    figures["refined"] = result.counts["refine"]["ok"]
    figures["rows_per_s"] = round(prompts.train / figures["generate_s"])
    figures["driver_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return figures


def resume(made: Recipe) -> dict[str, Any]:
    """Run generation on a root that lacks few rows."""
    store = Store(made.run.root, made.storage)
    with ray_session():
        return {"done": run_generation(open_run(made, store)).counts["refine"]["ok"]}


def first_part_seconds(rows: int, data: Path, root: Path, url: str, **environment: str) -> float:
    """Return the seconds from a process's start to its first new part; waits for the process to end."""
    [refine] = (root / "tables" / "refine").iterdir()
    last = max(attempt(part) for part in refine.glob("part-*"))  # merged parts are new, too
    started, seconds = time.monotonic(), 0.0
    with subprocess.Popen(command(rows, data, "resume", url), env=os.environ | environment) as process:
        while process.poll() is None:
            if not seconds and any(attempt(part) > last for part in refine.glob("part-*")):
                seconds = time.monotonic() - started
            time.sleep(0.1)
    if process.returncode or not seconds:
        raise SystemExit(f"the resumed run made nothing, exit {process.returncode}")
    return round(seconds, 1)


def attempt(part: Path) -> int:
    """Return the number of the run that wrote a part."""
    return int(part.name.split("-")[1])


def drop_a_tenth(root: Path) -> None:
    """Delete a tenth of the refinements' parts."""
    for part in sorted((root / "tables" / "refine").glob("*/part-*"))[::10]:
        part.unlink()


def child(rows: int, data: Path, phase: str, root: str) -> dict[str, Any]:
    """Run a phase in a process of its own; returns its figures."""
    done = subprocess.run(command(rows, data, phase, root), stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def command(rows: int, data: Path, phase: str, root: str) -> list[str]:
    """Return a child's command line."""
    return [sys.executable, "-m", "benchmarks.scale", str(rows), "--root", str(data), "--child", phase, root]


@contextmanager
def largest(figures: dict[str, Any]) -> Iterator[None]:
    """Record the largest use of the object store and largest memory of the run's other processes in a block."""
    ended = threading.Event()
    address = ray.get_runtime_context().gcs_address  # else Ray reports on the cluster that was started last
    figures |= {"object_store_peak_mib": 0} | dict.fromkeys(_PROCESSES.values(), 0)

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            summary = memory_summary(address, stats_only=True)
            found = re.search(r"Plasma memory usage (\d+) MiB", summary)
            seen = own_memory() | {"object_store_peak_mib": int(found[1]) if found else 0}
            for name, mib in seen.items():
                figures[name] = max(figures[name], mib)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def own_memory() -> dict[str, int]:
    """Return MiB of the executor's process and the ledger's."""
    seen = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if name := _PROCESSES.get(process.name()):
                seen[name] = process.memory_full_info().uss // 2**20
    return seen


def timed(figures: dict[str, Any], name: str, work: Callable[[], T]) -> T:
    """Call `work` and record its seconds."""
    started = time.monotonic()
    result = work()
    figures[name] = round(time.monotonic() - started, 1)
    return result


def write_prompts(folder: Path, rows: int) -> None:
    """Write prompts of the size of word problems."""
    with (folder / "data.jsonl").open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"prompt": f"Problem {number}. {WORDS * 3}", "gold": str(number)}) + "\n")


def recipe(rows: int, data: Path, root: str, endpoint: str | None) -> Recipe:
    """Return a recipe with two scripted engines that answer immediately."""
    engine = {"type": "scripted", "max_in_flight": 2048}
    return parse_recipe(
        {
            "run": {"name": f"scale-{rows}", "root": root},
            "storage": {"flush_rows": 4096, "endpoint_url": endpoint},
            "data": {
                "type": "jsonl",
                "path": str(data / "data.jsonl"),
                "reference_column": "gold",
                "holdout": {"count": 1},
            },
            "student": {"model": "student", "engine": engine},
            "teacher": {"engine": {**engine, "model": "teacher"}},
            "generation": {"execution": "streaming"},
        },
        "benchmarks/scale.py",
    )


if __name__ == "__main__":
    main()
