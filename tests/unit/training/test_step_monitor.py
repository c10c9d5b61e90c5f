"""What the driver says while it waits for step_monitor."""

import threading
from typing import cast
from unittest.mock import MagicMock

import pytest
import structlog
from ray.actor import ActorHandle

from cgd_ray.training.launch import step_monitor


def test_a_training_that_makes_no_step_says_so_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_monitor, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(step_monitor, "_SILENT_SECONDS", 0.1)
    monkeypatch.setattr("ray.get", lambda *_, **__: None)  # no rank has written a step: there is no node for it
    done = threading.Event()
    threading.Timer(1.0, done.set).start()
    with structlog.testing.capture_logs() as lines:
        step_monitor._show(cast("ActorHandle", MagicMock()), done)
    assert len(lines) >= 2
    assert {(line["event"].partition(";")[0], line["last"]) for line in lines} == {("training: no new step", 0)}
