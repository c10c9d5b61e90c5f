"""A run's folder: what stays on record when a phase finds its work done."""

from pathlib import Path

from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Document, Run

DONE: Document = {"reused": False, "spent": {"draft": {"rows": 5}}, "seconds": 60.0, "stages": {"draft": {"ok": 5}}}
IDLE: Document = {"reused": True, "spent": {}, "seconds": 0.1, "stages": {"draft": {"ok": 5}}}


def test_an_idle_phase_keeps_what_its_work_had_cost(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "r")
    assert run.record("generation.json", DONE) == DONE
    assert run.record("generation.json", IDLE) == DONE
    assert run.read_json("generation.json") == DONE


def test_costs_are_kept_model_by_model_and_scores_are_always_new(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "r")
    run.record("evaluation.json", {"base": {"accuracy": 0.1, "spent": {"rows": 9}}, "trained": {"spent": {"rows": 9}}})
    recorded = run.record(
        "evaluation.json", {"base": {"accuracy": 0.2, "spent": {}}, "trained": {"spent": {"rows": 4}}}
    )
    assert recorded == {"base": {"accuracy": 0.2, "spent": {"rows": 9}}, "trained": {"spent": {"rows": 4}}}
