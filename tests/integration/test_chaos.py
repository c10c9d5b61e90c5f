"""One of the trials of `tests/long/test_chaos.py`: a killed driver."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import FAULTS, Results, trial, uninterrupted


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return uninterrupted(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("fault", ["driver"])
def test_a_run_that_something_happens_to_ends_as_one_that_nothing_happens_to(
    tmp_path: Path, fault: str, expected: Results, record_property: Callable[[str, object], None]
) -> None:
    outcome = trial(tmp_path, FAULTS.index(fault))
    record_property("trial", outcome.said)
    assert outcome.paid_twice == 0
    assert outcome.differing(expected) == []
