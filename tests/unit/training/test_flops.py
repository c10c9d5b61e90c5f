"""The FLOPs that utilisation is counted by, against those that PyTorch counts as it runs the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from cgd_ray.config.training import LoraSection
from cgd_ray.training.dataset.packing import join
from cgd_ray.training.flops import Flops
from cgd_ray.training.loop.loss import summed_loss
from cgd_ray.training.lora import with_adapter

LENGTH, SUPERVISED = 96, 32


# Under an adapter the first layer's input needs no gradient, which is much of a model of two layers.
@pytest.mark.parametrize(("lora", "tolerance"), [(None, 0.001), (LoraSection(rank=1), 0.05)])
def test_they_are_those_of_the_matrix_products(tiny_dir: Path, lora: LoraSection | None, tolerance: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, attn_implementation="eager")
    if lora:
        model = with_adapter(model, lora, seed=0)
    flops = Flops.of(model)
    assert flops is not None
    counter = FlopCounterMode(display=False)
    with counter:
        row = join([(np.arange(LENGTH), LENGTH - SUPERVISED)])
        summed_loss(model, row, torch.device("cpu")).backward()
    lengths, supervised = np.array([LENGTH]), np.array([SUPERVISED])
    above_the_diagonal = 6 * flops.attention * LENGTH**2  # which eager attention computes, too
    expected = flops.of_rows(lengths, supervised) + above_the_diagonal
    assert counter.get_total_flops() == pytest.approx(expected, rel=tolerance)
