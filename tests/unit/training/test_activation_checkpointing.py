"""Gradient checkpointing where a GPU has no room: told from the estimate, and the same weights."""

from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.encoded_rows import EncodedRows
from cgd_ray.training.loop import activation_checkpointing
from cgd_ray.training.loop.trainer import Trainer
from cgd_ray.training.memory import NoEstimateError
from tests.unit.training.loop import distance, make_job, trained
from tests.unit.training.tiny import encoded_rows

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def encoded(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return encoded_rows(tiny_dir, tmp_path_factory.mktemp("root"), 8)


@pytest.fixture
def needed(encoded: Table, tiny_dir: Path) -> float:
    training = make_job(encoded, tiny_dir).training
    return activation_checkpointing.needed_bytes(training, tiny_dir, EncodedRows(encoded.read()))


class Case(NamedTuple):
    setting: bool | None
    """The recipe's."""
    room: float | None
    """Of a GPU, nine tenths of which are so many times what is needed; None for a CPU."""
    expected: bool


CASES = [
    Case(None, 1.01, expected=False),
    Case(None, 0.99, expected=True),
    Case(None, None, expected=False),
    Case(setting=False, room=0.5, expected=False),
    Case(setting=True, room=2.0, expected=True),
]


@pytest.mark.parametrize("case", CASES)
def test_where_the_recipe_leaves_it_open_memory_decides(
    encoded: Table, tiny_dir: Path, needed: float, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    if case.room is not None:
        room = round(needed * case.room / 0.9)
        monkeypatch.setattr(activation_checkpointing, "gpu_bytes", lambda _: room)
    rank = Trainer(make_job(encoded, tiny_dir, gradient_checkpointing=case.setting))
    assert rank.job.training.gradient_checkpointing is case.expected
    assert rank.engine.module.is_activation_checkpointing is case.expected


def test_a_student_that_cannot_be_told_is_trained_without(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise NoEstimateError("an operator without shapes")

    monkeypatch.setattr(activation_checkpointing, "gpu_bytes", lambda _: 1)
    monkeypatch.setattr(activation_checkpointing, "needed_bytes", fail)
    with structlog.testing.capture_logs() as said:
        rank = Trainer(make_job(encoded, tiny_dir))
    assert rank.job.training.gradient_checkpointing is False
    assert "no estimate for this student" in said[0]["event"]


def test_the_longest_pass_decides(encoded: Table, tiny_dir: Path, needed: float) -> None:
    rows = EncodedRows(encoded.read())
    longer = make_job(encoded, tiny_dir, micro_batch_tokens=2 * 4096).training
    assert activation_checkpointing.needed_bytes(longer, tiny_dir, rows) > 1.5 * needed
    # A row that is longer than a pass is a pass.
    tiny = [make_job(encoded, tiny_dir, micro_batch_tokens=tokens).training for tokens in (1, rows.lengths.max())]
    each = [activation_checkpointing.needed_bytes(training, tiny_dir, rows) for training in tiny]
    assert each[0] == each[1] < needed


def test_the_weights_are_the_same(encoded: Table, tiny_dir: Path) -> None:
    weights = [
        trained(make_job(encoded, tiny_dir, gradient_checkpointing=setting, epochs=3))[0] for setting in (True, False)
    ]
    assert distance(*weights) == 0
