"""A run's folder: what a change of settings does to its report."""

from pathlib import Path

from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Document, Run

CONFIG: Document = {"training": {"epochs": 1}, "serving": {"port": 8000}}


def test_a_report_goes_with_its_settings_and_stays_with_others(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "r")
    assert not run.begin(CONFIG)
    run.write_json("manifest.json", {"seconds": 1})
    assert not run.begin({**CONFIG, "serving": {"port": 9000}})
    assert run.read_json("manifest.json") == {"seconds": 1}
    assert run.begin({**CONFIG, "training": {"epochs": 2}})
    assert run.read_json("manifest.json") is None
    assert run.read_json("config.json") == {**CONFIG, "training": {"epochs": 2}}
