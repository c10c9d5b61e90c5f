"""What vLLM's words say of why it did not load."""

import pytest

from cgd_ray.compat.vllm import was_killed

SAYS = "Engine core initialization failed. See root cause above. Failed core proc(s): "


@pytest.mark.parametrize(
    ("text", "killed"),
    [
        (SAYS + "{}", True),
        (SAYS + "{'EngineCore_DP0': -9}", True),
        (SAYS + "{'EngineCore_DP0': 1}", False),
        (SAYS + "{'EngineCore_DP0': -15, 'EngineCore_DP1': 1}", False),
        ("CUDA error: no kernel image is available", False),
    ],
)
def test_a_core_that_was_killed_is_told_from_one_that_failed(text: str, *, killed: bool) -> None:
    assert was_killed(RuntimeError(text)) == killed
