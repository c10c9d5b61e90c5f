"""What training on two ranks holds between steps, against what `cgd_ray.training.memory` says of each ZeRO stage."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from cgd_ray.training.job import RankJob
from cgd_ray.training.memory import memory, model_sizes, reduce_bucket
from tests.ranks import ranks
from tests.unit.training.tiny import encoded_rows, rank_job, write_tiny_model

WORLD = 2


def held(job: RankJob) -> int:
    """On one rank: bytes of all tensors behind the last step."""
    from cgd_ray.training.loop.trainer import Trainer

    rank = Trainer(job)
    list(rank.steps())
    gc.collect()
    tensors = (found for found in gc.get_objects() if isinstance(found, torch.Tensor))
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu")
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_is_held_between_steps_is_as_estimated(tmp_path: Path, stage: int) -> None:
    write_tiny_model(
        tmp_path / "model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, vocab_size=32768
    )
    table = encoded_rows(tmp_path / "model", tmp_path / "root", 8)
    training = {"batch_size": 8, "epochs": 2, "zero_stage": stage, "workers": WORLD, "precision": "bf16"}
    job = rank_job(table, tmp_path / "model", training)
    sizes = model_sizes(tmp_path / "model", job.training, np.array([2]), np.array([1]))
    during_a_pass = {
        0: (4 + 2) * sizes.trained,  # gradients, and autocast's copies
        1: 0,
        2: 4 * sizes.trained / WORLD + 2 * reduce_bucket(sizes.trained, on_gpu=False),
        3: 2 * sizes.trained,  # weights that a pass gathers
    }
    told = memory(sizes, job.training, on_gpu=False).device - sizes.activations(checkpointed=False)
    with ranks(WORLD) as processes:  # new ones: an earlier engine's buffers would count
        measured = processes.run(held, job)
    assert measured == pytest.approx([told - during_a_pass[stage]] * WORLD, rel=0.01)
