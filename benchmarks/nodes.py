"""Measure how generation scales with nodes: a scripted engine that takes 50 ms a row, 8 in flight per actor.

    python -m benchmarks.nodes [--rows 4000] [--runs 3]

Clusters of one node and of four on this machine (`ray.cluster_utils.Cluster`), one student's and one teacher's engine
on each node (Ray Data spreads them). Rates are rows per second between the start of the first refinement and the end of
the last, so that start-up is left out. Prints a JSON line per run, and the ratio of the medians.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.scale import write_prompts
from cgd_ray.config.recipe import parse_recipe
from cgd_ray.generation.run import run_generation
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store

NODES = (1, 4)


def main() -> None:
    """Interleave runs on both clusters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    rates: dict[int, list[float]] = {nodes: [] for nodes in NODES}
    for _ in range(arguments.runs):
        for nodes in NODES:
            rates[nodes].append(measure(nodes, arguments.rows))
            print(json.dumps({"nodes": nodes, "rows_per_s": round(rates[nodes][-1], 1)}), flush=True)
    one, four = (statistics.median(rates[nodes]) for nodes in NODES)
    print(json.dumps({"ratio_of_medians": round(four / one, 2)}))


def measure(nodes: int, rows: int) -> float:
    """Return rows per second on a cluster of this size."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        with tempfile.TemporaryDirectory() as folder:
            return generate(Path(folder), nodes, rows)
    finally:
        ray.shutdown()
        cluster.shutdown()


def generate(folder: Path, nodes: int, rows: int) -> float:
    """Run generation once; returns rows per second."""
    write_prompts(folder, rows)
    engine: dict[str, Any] = {"type": "scripted", "latency_ms": 50, "max_in_flight": 8, "replicas": nodes}
    recipe = parse_recipe(
        {
            "run": {"name": "nodes", "root": str(folder)},
            "data": {"type": "jsonl", "path": str(folder / "data.jsonl"), "holdout": {"count": 1}},
            "student": {"model": "student", "engine": engine},
            "teacher": {"engine": {**engine, "model": "teacher"}},
            "generation": {"execution": "streaming"},
            "evaluation": {"enabled": False},
        },
        "benchmarks/nodes.py",
    )
    store = Store(recipe.run.root)
    result = run_generation(open_run(recipe, store))
    return result.metrics["refine"]["rows"] / result.metrics["refine"]["seconds"]


if __name__ == "__main__":
    main()
