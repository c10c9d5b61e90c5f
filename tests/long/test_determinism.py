"""The same recipe gives the same tables, however many rows, engines and nodes work at a time."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from ray.cluster_utils import Cluster

from cgd_ray.config.recipe import parse_recipe
from cgd_ray.generation.run import run_generation
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store

ROWS = 120


def tables(root: Path, execution: str, **engine: Any) -> dict[str, pa.Table]:
    """What a run makes of each stage: all columns but the number of the attempt, sorted by key."""
    root.mkdir()
    prompts = "".join(f'{{"prompt": "Question {number}."}}\n' for number in range(ROWS))
    (root / "data.jsonl").write_text(prompts)
    scripted = {"type": "scripted", "truncate_fraction": 0.1, **engine}
    tree: dict[str, Any] = {
        "run": {"name": "r", "root": str(root)},
        "storage": {"flush_rows": engine.get("max_in_flight", 64)},
        "data": {"type": "jsonl", "path": str(root / "data.jsonl"), "holdout": {"count": 1}},
        "student": {"model": "s", "engine": scripted},
        "teacher": {"engine": {**scripted, "model": "t"}},
        "evaluation": {"enabled": False},
        "generation": {"execution": execution, "draft": {"samples": 2, "temperature": 0.8}},
    }
    made = parse_recipe(tree, "test")
    store = Store(made.run.root)
    stages = run_generation(open_run(made, store)).stages
    return {stage.name: stage.results.read().drop_columns("attempt") for stage in stages.all}


def test_tables_do_not_depend_on_how_they_were_made(cluster: Cluster, tmp_path: Path) -> None:
    expected = tables(tmp_path / "one", "staged", max_in_flight=1)
    assert len(expected["draft"]) == 2 * (ROWS - 1)
    assert 0 < len(expected["refine"]) < len(expected["draft"])
    wide = tables(tmp_path / "wide", "streaming", max_in_flight=512, latency_ms=20)
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    spread = tables(tmp_path / "spread", "streaming", max_in_flight=7, replicas=3, latency_ms=5)
    for stage, table in expected.items():
        assert table.equals(wide[stage]), stage
        assert table.equals(spread[stage]), stage
