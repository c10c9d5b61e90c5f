"""A run's folder: what stays on record when a phase finds its work done."""

from pathlib import Path

from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Document, Run

DONE: Document = {"reused": False, "spent": {"draft": {"rows": 5}}, "seconds": 60.0, "stages": {"draft": {"ok": 5}}}
IDLE: Document = {"reused": True, "spent": {}, "seconds": 0.1, "stages": {"draft": {"ok": 5}}}


SETTINGS: Document = {"epochs": 1}


def test_an_idle_phase_keeps_what_its_work_had_cost_under_the_same_settings(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "r")
    first = run.record("generation.json", DONE, SETTINGS)
    assert first.items() > DONE.items()
    assert run.record("generation.json", IDLE, SETTINGS) == first == run.read_json("generation.json")
    assert run.record("generation.json", IDLE, {"epochs": 2}).items() > IDLE.items()


def test_costs_are_kept_model_by_model_and_scores_are_always_new(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "r")
    cost = {"rows": 9}
    run.record("evaluation.json", {"base": {"accuracy": 0.1, "spent": cost}, "trained": {"spent": cost}}, SETTINGS)
    new: Document = {"base": {"accuracy": 0.2, "spent": {}}, "trained": {"spent": {"rows": 4}}}
    recorded = run.record("evaluation.json", new, SETTINGS)
    assert recorded["base"] == {"accuracy": 0.2, "spent": cost}
    assert recorded["trained"] == {"spent": {"rows": 4}}
