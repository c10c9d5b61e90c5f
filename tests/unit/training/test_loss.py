from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cgd_ray.errors import CgdError
from cgd_ray.training.dataset.packing import join
from cgd_ray.training.loop.loss import packed_logits, require_isolation, summed_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)


def rows(vocabulary: int) -> list[tuple[Any, int]]:
    generator = np.random.default_rng(1)
    return [(generator.integers(3, vocabulary, size), size // 2) for size in (9, 17, 4, 30)]


def require_packed_equals_unpacked(model: Any, tolerance: float) -> None:
    whole = rows(model.config.vocab_size)
    with torch.no_grad():
        packed = packed_logits(model, join(whole), CPU)
        alone = torch.cat([packed_logits(model, join([row]), CPU) for row in whole])
        plain = [model(input_ids=torch.from_numpy(ids)[None]).logits[0, start - 1 : -1] for ids, start in whole]
    assert torch.allclose(packed, alone, atol=tolerance)
    assert torch.allclose(packed, torch.cat(plain), atol=tolerance)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "plain"])
def test_packed_rows_equal_rows_alone(tiny_dir: Path, *, training: bool, checkpointing: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    require_packed_equals_unpacked(model.train(training), 1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_packed_rows_equal_rows_alone_on_a_real_model(student_dir: Path, *, training: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    require_packed_equals_unpacked(model.train(training), 1e-3)


def test_summed_loss_is_the_sum_over_supervised_tokens_alone(tiny: Any) -> None:
    whole = rows(tiny.config.vocab_size)
    expected = 0.0
    for ids, start in whole:
        labels = torch.from_numpy(ids).clone()
        labels[:start] = -100
        mean = tiny(input_ids=torch.from_numpy(ids)[None], labels=labels[None]).loss
        expected += mean.item() * (len(ids) - start)
    assert summed_loss(tiny, join(whole), CPU).item() == pytest.approx(expected, rel=1e-5)


class Leaking(torch.nn.Module):
    """Lets rows see each other, as `use_cache=True` or a convolution over the pack would."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs | {"use_cache": True})


def test_isolation_is_proven_on_the_model_itself(tiny: Any) -> None:
    require_isolation(tiny, 400, CPU)
    with pytest.raises(CgdError, match=r"student\.model.*see each other"):
        require_isolation(Leaking(tiny), 400, CPU)
