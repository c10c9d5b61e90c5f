"""Fifty faults at seeded random times: `make test-long ARGS="-k chaos -s"` prints what happened to whom and when."""

import sys
from pathlib import Path

import pytest

from tests.chaos import Results, trial, uninterrupted

TRIALS = 50


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return uninterrupted(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_run_that_something_happens_to_ends_as_one_that_nothing_happens_to(
    tmp_path: Path, seed: int, expected: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    line = trial(tmp_path, seed, expected)
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")
