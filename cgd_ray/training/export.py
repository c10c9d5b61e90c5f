"""The trained student as a Hugging Face directory."""

import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import GenerationConfig

from cgd_ray.prompts.chat import load_tokenizer, with_defaults
from cgd_ray.training.encode import ChatEncoder
from cgd_ray.training.job import About


def gather_weights(engine: Any) -> dict[str, torch.Tensor]:
    """What was trained, in bfloat16 on rank 0's host memory; nothing on the others. All ranks call it together.

    Under ZeRO-3 one parameter at a time is gathered, so no device ever holds the whole model.
    """
    first = dist.get_rank() == 0
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()  # nothing may be under way that the last pass fetched ahead
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if first:
                weights[name] = parameter.detach().to("cpu", torch.bfloat16, copy=True)
    kept = engine.module.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in engine.module.named_buffers() if name in kept}
    return weights | {name: tensor.to("cpu", copy=True) for name, tensor in buffers.items()} if first else {}


def write_student(
    model: Any, weights: dict[str, torch.Tensor] | None, source: Path, folder: Path, about: About
) -> None:
    """Write safetensors, configuration, tokenizer with chat template, generation defaults and model card.

    The chat template takes the recipe's `chat_template_kwargs` where a request gives none, so that any server renders
    what training rendered. The generation defaults are greedy and stop at the end-of-turn token; sampling is each
    request's own business.
    """
    model.save_pretrained(folder, state_dict=weights)
    tokenizer = load_tokenizer(source, about.chat_template, "student")
    end_of_turn = ChatEncoder(tokenizer, {}).end_of_turn
    tokenizer.chat_template = with_defaults(tokenizer.chat_template, about.template_arguments)
    tokenizer.save_pretrained(folder)
    _say_bfloat16(folder / "config.json")
    stops = _stop_ids(model.generation_config.eos_token_id, end_of_turn)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        do_sample=False,
    ).save_pretrained(folder)
    (folder / "README.md").write_text(about.card, encoding="utf-8")


def _say_bfloat16(file: Path) -> None:
    """The live model may compute in fp32; the written weights are bfloat16 in any case."""
    config = json.loads(file.read_text())
    config.pop("torch_dtype", None)
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=2, sort_keys=True) + "\n")


def _stop_ids(known: int | list[int] | None, end_of_turn: int) -> list[int]:
    ids = [known] if isinstance(known, int) else list(known or [])
    return [end_of_turn, *(index for index in ids if index != end_of_turn)]
