"""TRL's SFTTrainer on the same ids and masks.

Settings: `defaults` (those of SFTConfig, except batch and learning rate); `packed-N`: packs of N tokens, best fit.
Packed runs take as many packs per step as give the same number of steps. They run without gradient checkpointing, which
a model that fits does not need.
"""

import math
import os
import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

from benchmarks.training.clock import Clock
from benchmarks.training.work import EPOCHS, Outcome, Task, arguments


def main() -> None:
    """Train both epochs."""
    task, made = arguments()
    torch.set_num_threads(task.threads)
    clock = Clock()
    rows = Dataset.from_list(
        [{"input_ids": ids, "completion_mask": [0] * start + [1] * (len(ids) - start)} for ids, start in task.rows]
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32),
            args=_config(task, rows, folder),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(task.model),
            callbacks=[clock],
        )
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    Outcome(clock.seconds, clock.steps, losses).write(made)


def _config(task: Task, rows: Dataset, folder: str) -> SFTConfig:
    common: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": task.precision == "bf16",
        "num_train_epochs": EPOCHS,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "completion_only_loss": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    if task.setting == "defaults":
        return SFTConfig(**common, gradient_accumulation_steps=task.batch_size // 8)
    length = int(task.setting.removeprefix("packed-"))
    return SFTConfig(
        **common,
        packing=True,
        max_length=length,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=math.ceil(len(pack_dataset(rows, length)) / task.steps),
        gradient_checkpointing=False,
    )


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
