"""Compare our loop with plain transformers and DeepSpeed on GPUs: full training at 1B, an adapter at 8B.

    torchrun --standalone --nproc-per-node N -m benchmarks.training.gpu --shape llama-3.2-1b --folder DIR [--side plain]

Needs no Ray and no download: the shapes are those of the models' configurations, the weights and the rows are random.
Both sides take the same packs of 4,096 tokens with the same attention between rows. Rank 0 prints a JSON line: medians
over the steps after the first two. `--shape tiny` is for a trial on CPU.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.training.ours import make_job
from benchmarks.training.work import Task
from cgd_ray.config.training import LoraSection, TrainingSection
from cgd_ray.training.dataset.packing import PackedRows
from cgd_ray.training.job import RankJob

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512},
}
LLAMA = {
    "vocab_size": 128_256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 131_072,
}
ADAPTED = "llama-3.1-8b"
PASS_TOKENS = 4096
WARM_UP = 2  # steps in which kernels are compiled and selected
SEED = 0


def main() -> None:
    """Make model and rows, train a few steps, print the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the model; seen by all ranks")
    parser.add_argument("--side", choices=["ours", "plain"], default="ours")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of an optimiser step, for each rank")
    parser.add_argument("--zero-stage", type=int, choices=[0, 1, 2, 3], default=2)
    parser.add_argument("--attention", choices=["auto", "sdpa", "flex_attention", "flash_attention_2"], default="auto")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--liger", action="store_true", help="of our side")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    model = options.folder / options.shape
    if dist.get_rank() == 0 and not (model / "config.json").exists():
        write_model(model, options.shape)
    dist.barrier()
    steps = (ours if options.side == "ours" else plain)(model, options)
    if dist.get_rank() == 0:
        asked = {name: value for name, value in vars(options).items() if name != "folder"}
        print(json.dumps(asked | summary(steps)), flush=True)
    dist.destroy_process_group()


def write_model(folder: Path, shape: str) -> None:
    """Write a model with random weights in bfloat16."""
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA | SHAPES[shape]), dtype=torch.bfloat16)
    made.save_pretrained(folder)


Figures = dict[str, float]


def summary(steps: list[Figures]) -> dict[str, Any]:
    """Return medians over the steps after the warm-up."""
    counted = steps[WARM_UP:]
    medians = {name: round(statistics.median(step[name] for step in counted), 4) for name in counted[0]}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"device": device, "ranks": dist.get_world_size(), "torch": torch.__version__, **medians}


def make_task(model: Path, options: argparse.Namespace) -> Task:
    """Make rows of 100 to 3,000 tokens, the median 600; the last third of each is supervised."""
    count = options.steps * options.batch_size * dist.get_world_size()
    generator = np.random.default_rng(SEED)
    vocabulary = (LLAMA | SHAPES[options.shape])["vocab_size"]
    lengths = np.clip(generator.lognormal(np.log(600), 0.6, count), 100, 3000).astype(int)
    rows = [(generator.integers(0, vocabulary, size).tolist(), int(size * 2 / 3)) for size in lengths]
    batch = options.batch_size * dist.get_world_size()
    return Task(str(model), rows, batch, "bf16", torch.get_num_threads(), setting=f"{options.zero_stage}-{PASS_TOKENS}")


def make_training(options: argparse.Namespace, base: TrainingSection) -> TrainingSection:
    """Return the training section; only `liger` differs between the sides."""
    return base.model_copy(
        update={
            "zero_stage": options.zero_stage,
            "attention": options.attention,
            "gradient_checkpointing": options.gradient_checkpointing,
            "compile": options.compile,
            "liger": options.liger and options.side == "ours",
            "epochs": 1,
            "lora": LoraSection() if options.shape == ADAPTED else None,
            "loss_spike": None,
        }
    )


def ours(model: Path, options: argparse.Namespace) -> list[Figures]:
    """Run the rank's loop that Ray Train and torchrun start."""
    from cgd_ray.training.dataset.encoded_rows import EncodedRows
    from cgd_ray.training.loop.trainer import Trainer
    from cgd_ray.training.memory import memory, model_sizes

    job = shared_job(model, options)
    rows = EncodedRows(job.encoded.read())
    # Before Liger replaces functions that the estimate calls with tensors without memory.
    sizes = model_sizes(model, job.training, rows.lengths, rows.supervised)
    rank = Trainer(job)
    estimated = memory(sizes, rank.job.training).device
    return [step.figures() | {"estimated_memory_gib": estimated / 2**30} for step in rank.steps()]


def plain(model: Path, options: argparse.Namespace) -> list[Figures]:
    """Train with transformers' loss over all positions and DeepSpeed's accumulation; the rest is as in `ours`."""
    from cgd_ray.training.flops import peak_memory
    from cgd_ray.training.loop.deepspeed_engine import apply_step
    from cgd_ray.training.loop.trainer import Trainer

    rank = Trainer(shared_job(model, options))
    size, figures = rank.job.training.batch_size, []
    for start in range(0, len(rank.trained), size):
        batch = rank.trained[start : start + size]
        passes = [one.rows for one in rank.passes_of(batch.tolist())]
        started = time.perf_counter()
        for place, rows in enumerate(passes):
            rank.engine.set_gradient_accumulation_boundary(place == len(passes) - 1)
            loss = rank.engine(**inputs(rows, rank.device), use_cache=False).loss
            rank.engine.backward(loss / len(passes), scale_wrt_gas=False)
        apply_step(rank.engine, rank.job.training.learning_rate)
        last = loss.item()  # waits for the device
        seconds = time.perf_counter() - started
        lengths, supervised = rank.rows.lengths[batch], rank.rows.supervised[batch]
        mfu = rank.yardstick.mfu(lengths, supervised, seconds * rank.world)
        figures.append(
            {
                "loss": last,
                "supervised_tokens_per_second": float(supervised.sum()) / seconds,
                "tokens_per_second": float(lengths.sum()) / seconds,
                "peak_memory_gib": peak_memory(rank.device) / 2**30,
                **({} if mfu is None else {"mfu": mfu}),
            }
        )
    return figures


def inputs(rows: PackedRows, device: torch.device) -> dict[str, torch.Tensor]:
    """Return a pack in the form of transformers' loss: labels [1, T], -100 at unsupervised positions."""
    ids, positions = (torch.from_numpy(each)[None] for each in (rows.input_ids, rows.position_ids))
    labels = torch.full_like(ids, -100)
    labels[0, torch.from_numpy(rows.predicting) + 1] = torch.from_numpy(rows.labels)
    return {"input_ids": ids.to(device), "position_ids": positions.to(device), "labels": labels.to(device)}


def shared_job(model: Path, options: argparse.Namespace) -> RankJob:
    """Make one job for all ranks; rank 0 writes its rows."""
    task = make_task(model, options)
    job = make_job(task, str(options.folder / f"rows-{options.shape}"), write=dist.get_rank() == 0)
    dist.barrier()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return replace(job, training=make_training(options, job.training), device=device)


if __name__ == "__main__":
    main()
