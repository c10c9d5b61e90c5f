"""One rank alone with its loop, and the same step in plain PyTorch."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional
from transformers import AutoModelForCausalLM

from cgd_ray.config.training import TrainingSection
from cgd_ray.storage.tables import Table
from cgd_ray.training.job import RankJob, StepReport
from cgd_ray.training.loop.trainer import Trainer
from tests.unit.training.tiny import rank_job

RATE = 1e-3
ROWS = 8


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A process group of one rank, as torchrun would make it."""
    with pytest.MonkeyPatch.context() as environment:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        values = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in values.items():
            environment.setenv(name, str(value))
        yield
        dist.destroy_process_group()


def make_job(encoded: Table, model: Path, **training: Any) -> RankJob:
    settings = {"batch_size": ROWS, "precision": "fp32", "learning_rate": RATE, "warmup_fraction": 0.0}
    return rank_job(encoded, model, settings | training)


def trained(job: RankJob) -> tuple[dict[str, torch.Tensor], list[StepReport]]:
    """The fp32 weights behind the last step, and the steps."""
    rank = Trainer(job)
    reports = list(rank.steps())
    return {name: weight.detach().clone() for name, weight in rank.engine.module.named_parameters()}, reports


def plain_step(
    encoded: Table, model_dir: Path, training: TrainingSection
) -> tuple[dict[str, torch.Tensor], float, float]:
    """One optimiser step in plain PyTorch, row by row, without packing or DeepSpeed."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    rows = encoded.read().to_pylist()
    tokens = sum(len(row["input_ids"]) - row["target_start"] for row in rows)
    losses = []
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        start = row["target_start"]
        logits = model(input_ids=ids[None]).logits[0, start - 1 : -1]
        losses.append(functional.cross_entropy(logits, ids[start:], reduction="sum") / tokens)
    loss = torch.stack(losses).sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=training.learning_rate).step()
    return dict(model.named_parameters()), loss.item(), norm.item()


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def mean_loss(encoded: Table, model: torch.nn.Module, numbers: list[int]) -> float:
    """Mean negative log-likelihood per supervised token of these rows, one by one in plain PyTorch."""
    rows = encoded.read().to_pylist()
    losses, tokens = 0.0, 0
    with torch.no_grad():
        for row in (rows[number] for number in numbers):
            ids, start = torch.tensor(row["input_ids"]), row["target_start"]
            logits = model(input_ids=ids[None]).logits[0, start - 1 : -1]
            losses += functional.cross_entropy(logits, ids[start:], reduction="sum").item()
            tokens += len(ids) - start
    return losses / tokens
