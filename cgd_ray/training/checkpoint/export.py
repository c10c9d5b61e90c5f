"""Export the trained student as a Hugging Face directory."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deepspeed
import structlog
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from transformers import GenerationConfig

from cgd_ray.config.training import LoraSection
from cgd_ray.prompts.chat import load_tokenizer, with_defaults
from cgd_ray.prompts.chat_encoder import ChatEncoder
from cgd_ray.training.checkpoint.adapter_merge import Mergeable, NotPlainError
from cgd_ray.training.job import STUDENT_MARKS, About, RankJob
from cgd_ray.training.lora import adapter_model, merge_in_memory, write_adapter
from cgd_ray.training.scratch import student_folder

if TYPE_CHECKING:
    from peft import PeftModel

log = structlog.get_logger(__name__)


def gather_weights(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """Return the trained weights in bfloat16, and buffers, on rank 0's host; nothing on other ranks.

    All ranks call it together. Under ZeRO-3, parameters are gathered one at a time: no device holds the whole model.
    """
    first = dist.get_rank() == 0
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()  # no prefetch of the last pass may be in flight
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


def export_student(engine: DeepSpeedEngine, job: RankJob, source: Path) -> None:
    """Write the trained student to the store from rank 0. All ranks call it together.

    Args:
        engine: holds the weights to export.
        job: job of the training.
        source: directory of the untrained student.
    """
    weights = gather_weights(engine)
    if dist.get_rank() != 0:
        return
    store = job.encoded.store
    for name in STUDENT_MARKS:  # first the files that mark a student as complete
        store.remove(f"{job.student}/{name}")
    store.discard(job.student)  # where deletion is not allowed, the export overwrites leftovers of the same names
    with student_folder() as folder:
        if job.training.lora is None:
            engine.module.save_pretrained(folder, state_dict=weights)
        else:
            adapted = adapter_model(source, job.training.lora)
            write_adapter(adapted, weights, job.model, folder / "adapter")
            # Upload before the merge, which takes time and space in proportion to the student.
            store.upload(folder, job.student)
            shutil.rmtree(folder / "adapter")
            _write_merged(source, job.training.lora, adapted, weights, folder)
        _write_surroundings(engine.module, source, folder, job.about)
        store.upload(folder, job.student)


def _write_merged(
    source: Path, lora: LoraSection, adapted: "PeftModel", weights: dict[str, torch.Tensor], folder: Path
) -> None:
    try:
        Mergeable(source, adapted).write(folder)
        shutil.copyfile(source / "config.json", folder / "config.json")
    except NotPlainError as error:
        log.warning("the adapter is merged in memory, which takes 6 bytes per parameter", not_plain=str(error))
        merge_in_memory(source, lora, weights).save_pretrained(folder)


def _write_surroundings(model: Any, source: Path, folder: Path, about: About) -> None:
    """Write tokenizer with chat template, generation defaults and model card beside weights and configuration.

    The chat template defaults to the recipe's `chat_template_kwargs` and system prompt if a request gives none, so that
    any server renders as training did. The generation defaults are greedy and stop at the end-of-turn token; sampling
    is up to each request.
    """
    tokenizer = load_tokenizer(source, about.chat_template, "student")
    end_of_turn = ChatEncoder(tokenizer, {}).end_of_turn
    tokenizer.chat_template = with_defaults(tokenizer.chat_template, about.template_arguments, about.system_prompt)
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
    """Set the configuration's type to bfloat16: written weights have it even if the model is fp32."""
    config = json.loads(file.read_text())
    config.pop("torch_dtype", None)
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=2, sort_keys=True) + "\n")


def _stop_ids(known: int | list[int] | None, end_of_turn: int) -> list[int]:
    ids = [known] if isinstance(known, int) else list(known or [])
    return [end_of_turn, *(index for index in ids if index != end_of_turn)]
