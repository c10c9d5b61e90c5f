"""A run's folder: what stays on record when a phase finds its work done."""

from pathlib import Path

from cgd_ray.report.outcome import CurationSummary, Phase, PhaseCost
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import JsonDict, Run

SETTINGS: JsonDict = {"epochs": 1}
DRAFTS, ANSWERS = {"rows": 5.0}, {"rows": 9.0}


def phase(kept: int, *, reused: bool, seconds: float, **spent: dict[str, float]) -> Phase[CurationSummary]:
    return Phase(CurationSummary(kept, {}), PhaseCost(seconds, reused, spent, "none" if reused else "streaming"))


def test_an_idle_phase_keeps_what_its_work_had_cost_under_the_same_settings(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "r")
    done, idle = phase(5, reused=False, seconds=60.0, draft=DRAFTS), phase(5, reused=True, seconds=0.1)
    assert done.recorded(run, "generation", SETTINGS) == done
    assert idle.recorded(run, "generation", SETTINGS) == done
    assert idle.recorded(run, "generation", {"epochs": 2}) == idle


def test_costs_are_kept_student_by_student_and_results_are_always_new(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "r")
    phase(1, reused=False, seconds=9.0, base=ANSWERS, trained=ANSWERS).recorded(run, "evaluation", SETTINGS)
    recorded = phase(2, reused=False, seconds=4.0, trained=DRAFTS).recorded(run, "evaluation", SETTINGS)
    assert recorded.result.kept == 2
    assert recorded.cost.spent == {"base": ANSWERS, "trained": DRAFTS}
    assert recorded.cost.seconds == 4.0


def test_a_file_of_another_form_is_written_anew(tmp_path: Path) -> None:
    run, idle = Run(Store(str(tmp_path)), "r"), phase(5, reused=True, seconds=0.1)
    run.write_json("generation.json", {"reused": False, "spent": {}})
    assert idle.recorded(run, "generation", SETTINGS) == idle
