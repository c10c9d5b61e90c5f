"""The public functions as a notebook uses them: scripted engines, a real training of a tiny student."""

import json
from pathlib import Path

import datasets
import pytest

import cgd_ray
from tests.unit.training.tiny import write_tiny_model

pytestmark = pytest.mark.usefixtures("cluster")
PROMPTS, HELDOUT = 24, 4


def recipe(root: Path) -> cgd_ray.Recipe:
    write_tiny_model(root / "student")
    rows = [{"prompt": f"What is {number} + 3?", "answer": f"#### {number + 3}"} for number in range(PROMPTS)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "run": {"name": "r", "root": str(root)},
        "data": {
            "type": "jsonl", "path": str(root / "data.jsonl"), "reference_column": "answer",
            "holdout": {"count": HELDOUT},
        },
        "student": {"model": str(root / "student"), "engine": {"type": "scripted"}},
        "teacher": {"engine": {"type": "scripted", "model": "t"}},
        "training": {"batch_size": 8, "max_length": 2000, "resources": {"cpus_per_worker": 1}},
    }  # fmt: skip
    return cgd_ray.parse_recipe(tree, "test")


def test_a_run_its_tables_and_a_comparison(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    with pytest.raises(cgd_ray.CgdError, match="nothing was run there yet"):
        cgd_ray.read_table(made, "examples")
    generated = cgd_ray.run(made, ["generate"])
    assert generated.generation.result.stages["refine"]["ok"] == PROMPTS - HELDOUT
    assert (generated.training, generated.evaluation) == (None, None)
    outcome = cgd_ray.run(made)
    assert outcome.generation.cost.reused
    assert outcome.training
    assert outcome.evaluation
    assert outcome.evaluation.result.difference
    examples = cgd_ray.read_table(made, "examples", ["prompt", "draft"]).to_pandas()
    assert list(examples) == ["prompt", "draft"]
    assert len(examples) == outcome.curation.result.kept
    critiques = datasets.Dataset(cgd_ray.read_table(made, "critique"))
    assert set(critiques["status"]) == {"ok"}
    outcomes = cgd_ray.compare(made, ["cgd", "refsft"])
    assert list(outcomes) == ["cgd", "refsft"]
    assert all(one.generation.cost.reused and one.training for one in outcomes.values())
    assert "| refsft |" in (tmp_path / "runs/r/comparison.md").read_text()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    cgd_ray.run(made, ["generate"])
    with pytest.raises(cgd_ray.CgdError, match="table answer: not made yet by run r"):
        cgd_ray.read_table(made, "answer")
    with pytest.raises(cgd_ray.CgdError, match=r"table nothing: unknown\. Fix: take one of prompts, draft"):
        cgd_ray.read_table(made, "nothing")  # type: ignore[arg-type]
    with pytest.raises(cgd_ray.CgdError, match=r"training\.method"):
        cgd_ray.compare(made, ["nothing"])
