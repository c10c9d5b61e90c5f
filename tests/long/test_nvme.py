"""Optimiser states on disk: the first test compiles DeepSpeed's asynchronous I/O and its Adam for CPUs (minutes)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder

from cgd_ray.training.job import RankJob
from tests.integration.test_layouts import STEPS, distance, finish, in_layout, state, train
from tests.ranks import Ranks, ranks
from tests.unit.training.tiny import encoded_rows, rank_job, write_tiny_model

TOLERANCE = 5e-6

pytestmark = pytest.mark.skipif(
    not AsyncIOBuilder().is_compatible(verbose=False), reason="needs libaio's headers (Debian: libaio-dev)"
)


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with ranks(2) as started:
        yield started


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RankJob:
    """Of a model large enough for DeepSpeed to put more than one sub-group of it on disk."""
    model = tmp_path_factory.mktemp("small-llama")
    write_tiny_model(model, vocab_size=2048, hidden_size=512, intermediate_size=1024)
    table = encoded_rows(model, tmp_path_factory.mktemp("root"), 12)
    settings = {
        "batch_size": 4, "epochs": 2, "precision": "fp32", "learning_rate": 1e-3, "weight_decay": 0.1,
        "checkpoint_every": 1, "micro_batch_tokens": 64, "zero_stage": 3,
    }  # fmt: skip
    return rank_job(table, model, settings)


def swapped(job: RankJob, stop_after: int) -> tuple[int | None, list[int]]:
    """On one rank: `train` with small sub-groups; where it began, and the sizes of the states on disk."""
    from cgd_ray.training.loop import deepspeed_engine

    deepspeed_engine.SWAPPED_AT_ONCE = 1_000_000
    began = train(job, stop_after)
    folder = Path(str(job.training.offload_folder))
    return began, [file.stat().st_size for file in folder.rglob("exp_avg-*.swp")]


def test_states_on_disk_train_and_resume_as_states_in_memory(two: Ranks, job: RankJob, tmp_path: Path) -> None:
    on_disk = {"offload": "nvme", "offload_folder": str(tmp_path / "disk")}
    in_memory = in_layout(job, "in-memory")
    two.run(train, in_memory, STEPS)
    made = in_layout(job, "on-disk", **on_disk)
    for begin, end in ((None, 2), (2, 4)):
        for began, sizes in two.run(swapped, made, end):
            assert began == begin
            assert len(sizes) > 2
    assert set(two.run(train, in_layout(job, "on-disk", zero_stage=2), STEPS)) == {4}
    assert distance(state(made), state(in_memory)) < TOLERANCE


def test_the_disk_is_left_as_it_was(two: Ranks, job: RankJob, tmp_path: Path) -> None:
    made = in_layout(job, "to-the-end", offload="nvme", offload_folder=str(tmp_path / "disk"))
    made = replace(made, student="student-of-the-disk")
    assert two.run(finish, made) == [STEPS, STEPS]
    assert list((tmp_path / "disk").iterdir()) == []
    assert made.encoded.store.exists("student-of-the-disk/model.safetensors")
