"""Fifty faults at seeded random times: `make test-long ARGS="-k chaos -s"` prints what happened to whom and when."""

import sys
from pathlib import Path

import pytest

from tests.chaos import Results, trial, uninterrupted, vllm_trial

TRIALS = 50


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return uninterrupted(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_run_that_something_happens_to_ends_as_one_that_nothing_happens_to(
    tmp_path: Path, seed: int, expected: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = trial(tmp_path, seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{outcome.said}\n")
    assert outcome.paid_twice == 0
    assert outcome.differing(expected) == []


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("victim", ["driver", "engine", "child"])
@pytest.mark.parametrize("seed", [1, 2])
def test_real_engines_lose_and_repeat_nothing(
    tmp_path: Path, victim: str, seed: int, student_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = "{max_tokens: 96, chat_template_kwargs: {}}"
    engine = "type: vllm, max_model_len: 2048, max_in_flight: 8"
    engines = [
        "data.limit=12",
        f"student.model={student_dir}",
        f"student.engine={{{engine}}}",
        f"teacher.engine={{{engine}, model: {student_dir}}}",
        *(f"generation.{stage}={short}" for stage in ("answer", "critique", "refine")),
        "generation.critique.reference=none",
        "generation.draft.max_tokens=128",
        "curation.drop_mentions=false",  # few rows are complete, and curation must keep one
        "generation.execution=staged",
    ]
    outcome = vllm_trial(tmp_path, victim, seed, engines)
    with capsys.disabled():
        sys.stdout.write(f"\n{outcome.said}\n")
    assert outcome.paid_twice == 0
