"""What a machine lacks is said before anything is compiled."""

from typing import Any

import pytest
import torch

from cgd_ray.config.training import TrainingSection
from cgd_ray.training.loop.kernels import lacking

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("settings", "device", "said"),
    [
        ({"compile": True}, CPU, "training.compile: there is no C++ compiler 'g++'"),
        ({"offload": "cpu", "attention": "sdpa"}, GPU, "training.offload: there is no C++ compiler 'g++'"),
        ({}, GPU, "training.attention: flex_attention is compiled, and there is no C compiler"),
        ({"offload": "cpu"}, CPU, None),  # nothing moves
        ({"attention": "sdpa"}, GPU, None),
    ],
)
def test_without_a_compiler(
    settings: dict[str, Any], device: torch.device, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TrainingSection.model_validate({"zero_stage": 2} | settings)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert lacking(training, device) is None
    monkeypatch.setenv("PATH", "/nowhere")
    found = lacking(training, device)
    assert found is None if said is None else found and found.startswith(said)
