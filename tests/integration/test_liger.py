"""Training with Liger's kernels, run by Triton's interpreter: loss and weights are those without them.

The interpreter of Triton 3.9 cannot run the kernels of norms and gated layers (they call methods of plain numbers), so
these are left out here; rotary positions and the loss with the output layer are what it proves.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cgd_ray.config.training import LoraSection
from cgd_ray.storage.tables import Table
from cgd_ray.training.job import RankJob
from tests.ranks import Ranks, ranks
from tests.unit.training.tiny import encoded_rows, rank_job, write_tiny_model

ROWS = 6
Trained = tuple[dict[str, torch.Tensor], list[float], bool]


def trained(job: RankJob) -> Trained:
    """On one rank: the weights behind the last step, the losses, the last of them of rows set aside; if it is fused."""
    from cgd_ray.training.loop import kernels
    from cgd_ray.training.loop.trainer import Trainer

    kernels.LAYERS = {name: name == "rope" for name in kernels.LAYERS}
    rank = Trainer(job)
    losses = [report.progress.loss for report in rank.steps()]
    rank.validate()
    assert rank.progress.validation_loss is not None
    weights = {name: weight.detach().clone() for name, weight in rank.engine.module.named_parameters()}
    return weights, [*losses, rank.progress.validation_loss], rank._fused


@pytest.fixture(scope="module")
def interpreting() -> Iterator[Ranks]:
    """A process in which Triton interprets: it must know so before it is imported."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        with ranks(1) as started:
            yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return encoded_rows(model, tmp_path_factory.mktemp("root"), ROWS)


def make_job(encoded: Table, model: Path, **training: Any) -> RankJob:
    settings = {
        "batch_size": 2, "precision": "fp32", "learning_rate": 1e-3, "micro_batch_tokens": 64,
        "validation_fraction": 0.3, "zero_stage": 2,
    }  # fmt: skip
    return rank_job(encoded, model, settings | training)


@pytest.mark.parametrize("settings", [{}, {"lora": LoraSection(rank=4, alpha=8), "zero_stage": 0}])
def test_loss_and_weights_are_those_without_it(
    interpreting: Ranks, encoded: Table, model: Path, settings: dict[str, Any]
) -> None:
    found: list[Trained] = [
        interpreting.run(trained, make_job(encoded, model, liger=liger, **settings))[0] for liger in (True, False)
    ]
    (weights, losses, fused), (plain, expected, never) = found
    assert (fused, never) == (True, False)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert max((weights[name] - plain[name]).abs().max().item() for name in plain) < 5e-5  # a step is 1e-3


def test_weights_that_are_gathered_for_a_layer_keep_their_own_loss(
    interpreting: Ranks, encoded: Table, model: Path
) -> None:
    [(_, losses, fused)] = interpreting.run(trained, make_job(encoded, model, liger=True, zero_stage=3))
    [(_, expected, _)] = interpreting.run(trained, make_job(encoded, model))
    assert not fused
    assert losses == pytest.approx(expected, rel=1e-5)
