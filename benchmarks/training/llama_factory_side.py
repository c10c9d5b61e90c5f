"""LLaMA-Factory's supervised fine-tuning on the same ids and masks, which it reads as a tokenised dataset.

Settings: `defaults` (those of `stage: sft`, except batch and learning rate); `packed-N`: its `neat_packing` into packs
of N tokens. Packed runs take as many packs per step as give the same number of steps. They run without gradient
checkpointing, which a model that fits does not need.
"""

import math
import os
import tempfile
from itertools import chain
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from llamafactory.data.processor.processor_utils import greedy_knapsack
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback

from benchmarks.training.clock import Clock
from benchmarks.training.work import EPOCHS, Outcome, Task, arguments

IGNORED = -100
Row = dict[str, list[int]]


class _Losses(TrainerCallback):
    """Stores the logged losses."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.seen.append(logs["loss"])


def main() -> None:
    """Train both epochs."""
    task, made = arguments()
    torch.set_num_threads(task.threads)
    clock, losses = Clock(), _Losses()
    length = None if task.setting == "defaults" else int(task.setting.removeprefix("packed-"))
    rows = [_row(ids, start) for ids, start in task.rows]
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.from_list(rows if length is None else _packs(rows, length))
        DatasetDict({"train": dataset}).save_to_disk(f"{folder}/rows")
        run_exp(_config(task, folder, length, len(dataset)), callbacks=[clock, losses])
    Outcome(clock.seconds, clock.steps, losses.seen).write(made)


def _row(ids: list[int], start: int) -> Row:
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * start + ids[start:]}


def _packs(rows: list[Row], length: int) -> list[Row]:
    """Pack rows as its packed processor does: `attention_mask` numbers the rows of a pack, 0 is padding."""
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        by_length.setdefault(len(row["input_ids"]), []).append(row)
    packs = []
    for knapsack in greedy_knapsack(sorted(len(row["input_ids"]) for row in rows), length):
        members = [by_length[size].pop() for size in knapsack]
        numbered = [row | {"attention_mask": [place] * len(row["labels"])} for place, row in enumerate(members, 1)]
        pack = {name: list(chain.from_iterable(row[name] for row in numbered)) for name in rows[0]}
        for name, filler in (("input_ids", 0), ("labels", IGNORED), ("attention_mask", 0)):
            pack[name] += [filler] * (length + 1 - len(pack[name]))
        packs.append(pack)
    return packs


def _config(task: Task, folder: str, length: int | None, packs: int) -> dict[str, Any]:
    common: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": task.model,
        "finetuning_type": "full",
        "template": "empty",
        "dataset": "none",
        "tokenized_path": f"{folder}/rows",
        "output_dir": f"{folder}/out",
        "use_cpu": True,
        "bf16": task.precision == "bf16",
        "num_train_epochs": EPOCHS,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    if length is None:
        return common | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": task.batch_size // 8}
    return common | {
        "packing": True,
        "neat_packing": True,
        "cutoff_len": length,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": math.ceil(packs / task.steps),
    }


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    main()
