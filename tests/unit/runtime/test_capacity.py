"""What is asked of an autoscaler that does not tell its shapes of nodes. No Ray."""

import pytest

from cgd_ray.errors import ConfigError
from cgd_ray.runtime import capacity
from cgd_ray.runtime.capacity import Wanted, require_room
from cgd_ray.runtime.cluster import Cluster, Node, could_launch
from cgd_ray.runtime.demand import Demand

GPUS = 8  # on all nodes that may come


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many demands were made at once, by question."""
    questions: list[int] = []

    def answer(demands: list[Demand]) -> bool:
        questions.append(len(demands))
        return sum(demand.gpus for demand in demands) <= GPUS

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(capacity, "read_cluster", lambda: Cluster((Node(2, 0),), grows=True))
    monkeypatch.setattr(capacity, "could_launch", answer)
    monkeypatch.setattr(capacity, "resources_in_use", lambda: Demand(0, 0))
    return questions


def test_all_that_must_run_at_once_is_asked_for(asked: list[int]) -> None:
    require_room([Wanted("training", Demand(1, 1), 8, 8)])
    assert asked == [1, 8]
    with pytest.raises(ConfigError, match="never hold at once training: 16 with 1 CPUs and 1 GPUs"):
        require_room([Wanted("training", Demand(1, 1), 16, 16)])


def test_engines_that_can_do_without_others_are_not_asked_for_all(asked: list[int]) -> None:
    require_room([Wanted("student.engine", Demand(1, 1), 64, 2), Wanted("teacher.engine", Demand(1, 4), 16, 1)])
    assert asked == [1, 1, 3]


def test_what_others_hold_is_waited_for(
    asked: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "resources_in_use", lambda: Demand(1, 4))
    require_room([Wanted("training", Demand(1, 1), 16, 16)])
    assert asked == [1, 16]
    assert "has no room now for training: 16 with" in capsys.readouterr().out


def test_what_needs_nothing_is_no_question() -> None:
    assert could_launch([Demand(0, 0)])


def test_before_its_nodes_are_needed_a_training_asks_for_one(asked: list[int]) -> None:
    require_room([Wanted("training", Demand(1, 1), 16, 16)], may_start_nodes=False)
    assert asked == [1]
