"""`cgd plan`: what a probe says a run takes, against what the run then takes."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.config.training import TrainingSection
from cgd_ray.curation.run import run_curation
from cgd_ray.estimation.generation import Estimate, probe
from cgd_ray.estimation.report import print_estimate, print_training
from cgd_ray.estimation.training import forecast_training
from cgd_ray.generation.run import run_generation
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.stages.resolved import ResolvedRun, open_run
from cgd_ray.stages.student_encoder import student_encoder
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.tables import IdRange
from cgd_ray.training.dataset.encode import Encoding, encode_examples
from tests.unit.training.tiny import write_tiny_model

ROWS, PROBED = 600, 200


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def recipe(root: Path) -> Recipe:
    texts = (" ".join(["word"] * (number % 40)) for number in range(ROWS + 1))
    prompts = "".join(f'{{"prompt": "Question {number}. {text}"}}\n' for number, text in enumerate(texts))
    (root / "data.jsonl").write_text(prompts)
    engine = {"type": "scripted", "max_in_flight": 8}
    tree: dict[str, Any] = {
        "run": {"name": "r", "root": str(root)},
        "data": {"type": "jsonl", "path": str(root / "data.jsonl"), "holdout": {"count": 1}},
        "student": {"model": "s", "engine": engine | {"latency_ms": 20, "truncate_fraction": 0.25}},
        "teacher": {"engine": engine | {"model": "t", "latency_ms": 60}},
        "evaluation": {"enabled": False},
        "generation": {"execution": "staged"},
    }
    return parse_recipe(tree, "test")


def opened(made: Recipe) -> ResolvedRun:
    return open_run(made, Store(made.run.root))


def test_training_takes_what_was_told_from_a_probe(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "student")
    made = recipe(tmp_path)
    student = made.student.model_copy(update={"model": str(tmp_path / "student")})
    training = TrainingSection(method="cgd", epochs=2, batch_size=16, max_length=2000, workers=2)
    made = made.model_copy(update={"student": student, "training": training})
    assert forecast_training(opened(made)) is None
    probe(opened(made), PROBED, None)
    told = forecast_training(opened(made))
    assert told
    run_generation(opened(made))
    curated = run_curation(made, opened(made).join())
    encoding = Encoding(training, 0, load_prompts("default"), student_encoder(made))
    counts = encode_examples(curated.examples, encoding).counts
    assert 0 < counts.rows < ROWS  # a quarter of the drafts is truncated
    assert told.rows == pytest.approx(counts.rows, rel=0.15)
    assert told.steps == pytest.approx(2 * counts.rows / 16, rel=0.15)
    assert told.total_tokens == pytest.approx(2 * counts.total_tokens, rel=0.15)
    assert told.supervised_tokens == pytest.approx(2 * counts.supervised_tokens, rel=0.15)
    exact = forecast_training(opened(made))
    assert exact
    assert (exact.rows, exact.total_tokens) == (counts.rows, pytest.approx(2 * counts.total_tokens))
    console = Console(record=True, width=160)
    print_training(exact, training, console)
    shown = console.export_text()
    assert re.search(rf"rows after curation +│ {counts.rows} ", shown)
    assert "with gradient checkpointing" in shown
    assert re.search(r"the export takes \d+\.\d GiB more on the host of the first worker", shown)
    assert len(exact.memory) == 7
    for layout, needed in exact.memory.items():
        assert 0 < exact.saved[layout] < needed.device


def test_the_run_takes_what_the_probe_said(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    estimate = probe(opened(made), PROBED, gpu_hour_price=2.0)
    assert isinstance(estimate, Estimate)
    assert (estimate.probed, estimate.overlap, estimate.starved) == (PROBED, False, False)
    result = run_generation(opened(made))
    assert result.metrics["draft"]["rows"] == ROWS - PROBED  # the probe's are kept
    for stage, said in estimate.stages.items():
        took = result.metrics[stage]
        assert said.rows == pytest.approx(took["rows"], rel=0.15)
        for tokens in ("prompt_tokens", "completion_tokens"):
            assert getattr(said, tokens).value == pytest.approx(took[tokens], rel=0.15)
        assert said.prompt_tokens.low < said.prompt_tokens.value < said.prompt_tokens.high
        assert said.gpu_hours.value == 0
    took = max(result.metrics[stage]["started"] + result.metrics[stage]["seconds"] for stage in result.metrics)
    teacher = took - result.metrics["critique"]["started"]
    said = estimate.stages["critique"].hours.plus(estimate.stages["refine"].hours).value * 3600
    assert said == pytest.approx(teacher, rel=0.5)  # noisy machines
    assert probe(opened(made), PROBED, None) is None


@pytest.mark.long
def test_a_probe_of_scattered_rows_reads_no_more_than_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are left over all ids are few; a sample that spans all ids would be joined with all that was made."""
    monkeypatch.setattr("cgd_ray.data.prepare.PART_ROWS", 50)
    made = recipe(tmp_path)
    assert probe(opened(made), 10 * ROWS, None)
    for part in sorted(tmp_path.glob("tables/refine/*/part-*"))[::5]:
        part.unlink()
    before = set(tmp_path.glob("tables/prompts/*/part-*"))
    assert probe(opened(made), 40, None)
    sample = sorted(set(tmp_path.glob("tables/prompts/*/part-*")) - before)
    ranges = [IdRange.of_part(part.name) for part in sample]
    assert len(ranges) > 1
    assert all(one.last <= other.first for one, other in itertools.pairwise(ranges))


def test_what_a_person_reads(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    estimate = probe(opened(made), 10, None)
    assert estimate is not None
    console = Console(record=True, width=160)
    print_estimate(estimate, console)
    text = console.export_text()
    assert re.search(r"critique .* \d", text)
    assert "10 rows did not fill the engines" in text
    assert "give --gpu-hour-price" in text
