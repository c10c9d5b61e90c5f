"""What a resumed training reads from S3."""

from pathlib import Path
from typing import Any

import pytest
import s3fs

from cgd_ray.training.job import RankJob
from tests.ranks import ranks
from tests.servers import S3Server
from tests.unit.training.tiny import encoded_rows, rank_job, write_tiny_model

STEPS = 2


def train(job: RankJob) -> None:
    """On one rank: make the steps, and write a checkpoint."""
    from cgd_ray.training.checkpoint.checkpoints import Checkpoints
    from cgd_ray.training.loop.trainer import Trainer

    rank = Trainer(job)
    list(rank.steps())
    checkpoints = Checkpoints(job.encoded.store, job.checkpoints, 1)
    checkpoints.save(rank.engine, rank.progress)
    checkpoints.wait()


def bytes_read(job: RankJob) -> tuple[int, int]:
    """On one rank: bytes and requests that a checkpoint's data takes to be restored."""
    from cgd_ray.training.checkpoint.checkpoints import Checkpoints
    from cgd_ray.training.loop.trainer import Trainer

    rank = Trainer(job)
    sizes: list[int] = []
    call = s3fs.S3FileSystem._call_s3

    async def counting(fs: Any, method: str, *arguments: Any, **options: Any) -> Any:
        response = await call(fs, method, *arguments, **options)
        if method == "get_object" and options["Key"].endswith(".distcp"):
            sizes.append(response["ContentLength"])
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", counting)
        assert Checkpoints(job.encoded.store, job.checkpoints, 1).restore(rank.engine).step == STEPS
    return sum(sizes), len(sizes)


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.long), 3])
def test_a_checkpoint_is_read_once(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    write_tiny_model(tmp_path, vocab_size=20_000, hidden_size=256)
    settings = {"batch_size": 4, "zero_stage": stage, "precision": "fp32"}
    job = rank_job(encoded_rows(tmp_path, s3.url(f"reads-{stage}"), 4 * STEPS), tmp_path, settings)
    with ranks(2) as both:
        both.run(train, job)
        found = both.run(bytes_read, job)
    store = job.encoded.store
    sizes = store.fs.du(store.path(job.checkpoints), total=False)
    size = sum(size for name, size in sizes.items() if name.endswith(".distcp"))
    assert size > 50 * 2**20  # of several blocks of s3fs
    assert size <= sum(read for read, _ in found) <= 1.1 * size
    assert sum(requests for _, requests in found) < 20
