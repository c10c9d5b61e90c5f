"""Ours: one rank of the loop that Ray Train and torchrun start.

The setting is the ZeRO stage, the tokens of a pass, and whether layers are compiled: `2-4096`, `2-4096-compiled`.
"""

import os
import socket
import tempfile

from benchmarks.training.work import EPOCHS, Outcome, Task, arguments
from cgd_ray.config.run import StorageSection
from cgd_ray.config.training import TrainingSection
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.job import About, RankJob, StepReport


def main() -> None:
    """Train both epochs; the seconds exclude the checkpoint and the export at the end."""
    task, made = arguments()
    stand_alone()
    from cgd_ray.training.loop.trainer import train_rank

    steps: list[StepReport] = []
    with tempfile.TemporaryDirectory() as root:
        train_rank(make_job(task, root), lambda step: bool(steps.append(step)))  # type: ignore[func-returns-value]
    losses = [step.progress.loss for step in steps]
    second = steps[len(steps) // EPOCHS :]
    Outcome(sum(step.seconds for step in second), len(second), losses).write(made)


def stand_alone() -> None:
    """Set torchrun's variables for a single rank; call it before DeepSpeed is imported."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in alone.items()} | {"DS_ACCELERATOR": "cpu"}


def make_job(task: Task, root: str, *, write: bool = True) -> RankJob:
    """Make a job on the task's rows, which become a table under a root; without `write`, another rank writes it."""
    stage, tokens, *compiled = task.setting.split("-")
    table = Table(Store(root), "encoded", "benchmark", ENCODED)
    rows = [
        {"prompt_id": f"{number:032x}", "sample": 0, "view": "sft", "input_ids": ids, "target_start": start}
        for number, (ids, start) in enumerate(task.rows)
    ]
    if write:
        table.write_part("part-0", rows)
    training = TrainingSection(
        batch_size=task.batch_size,
        epochs=EPOCHS,
        compile=bool(compiled),
        learning_rate=task.learning_rate,
        lr_scheduler="constant",
        warmup_fraction=0.0,
        precision="bf16" if task.precision == "bf16" else "fp32",
        zero_stage=0 if stage == "0" else 2,
        micro_batch_tokens=int(tokens),
    )
    return RankJob(
        encoded=table,
        model=task.model,
        revision=None,
        storage=StorageSection(),
        training=training,
        seed=0,
        identity="benchmark",
        checkpoints="checkpoints",
        name="benchmark",
        figures="figures",
        student="student",
        about=About("", None, {}),
        device="cpu",
        threads=task.threads,
    )


if __name__ == "__main__":
    main()
