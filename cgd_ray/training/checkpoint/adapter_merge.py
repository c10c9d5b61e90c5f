"""Merge an adapter into its student's weights, a few gigabytes at a time, from safetensors to safetensors."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from cgd_ray.training.memory import SHARD_BYTES

if TYPE_CHECKING:
    from peft import PeftModel

_FLOATS = ("F64", "F32", "F16", "BF16")


class NotPlainError(Exception):
    """A weight that an adapter changes is not stored as in the model: experts, 8 bits, another file format."""


class Mergeable:
    """An adapter and the stored weights of its student that it changes."""

    def __init__(self, source: Path, adapted: "PeftModel") -> None:
        """Read the headers of the student's files.

        Args:
            source: directory of the student.
            adapted: from `adapter_model`.

        Raises:
            NotPlainError: names the first such weight.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer  # takes seconds, which at the top all trainings would pay

        self._files = {name: file for file in _files(source) for name in _names(file)}
        modules = adapted.get_base_model().named_modules()
        layers = {f"{name}.weight": module for name, module in modules if isinstance(module, BaseTunerLayer)}
        stored = {target: name for name, target in _targets(self._files, adapted) if self._is_float(name)}
        lacking = sorted(layers.keys() - stored.keys())
        if lacking:
            raise NotPlainError(lacking[0])
        self._layers: dict[str, BaseTunerLayer] = {stored[name]: layer for name, layer in layers.items()}

    def write(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        """Write the student in bfloat16 under its stored names, with the adapter's products added in fp32.

        Args:
            folder: folder of the new student.
            shard_bytes: maximum size of each file, which is built in memory; a single weight may be larger.
        """
        forms = {name: torch.empty(self._shape(name), dtype=torch.bfloat16, device="meta") for name in self._files}
        plan = split_torch_state_dict_into_shards(forms, max_shard_size=shard_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        for file, names in plan.filename_to_tensors.items():
            save_file({name: self._merged(name) for name in names}, folder / file, metadata={"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _merged(self, name: str) -> torch.Tensor:
        with safe_open(self._files[name], "pt") as file:  # closing it releases its pages
            weight: torch.Tensor = file.get_tensor(name)
            if name in self._layers:
                weight = weight.float().add(self._layers[name].get_delta_weight("default"))
            return weight.to(torch.bfloat16, copy=True) if weight.is_floating_point() else weight.clone()

    def _shape(self, name: str) -> list[int]:
        with safe_open(self._files[name], "pt") as file:
            return list(file.get_slice(name).get_shape())

    def _is_float(self, name: str) -> bool:
        with safe_open(self._files[name], "pt") as file:
            return file.get_slice(name).get_dtype() in _FLOATS


def _files(source: Path) -> list[Path]:
    """Return the files that transformers loads: there may be others, such as Mistral's `consolidated.safetensors`."""
    index = source / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return [source / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = source / SAFE_WEIGHTS_NAME
    return [single] if single.is_file() else []


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def _targets(names: Iterable[str], adapted: "PeftModel") -> Iterator[tuple[str, str]]:
    """Yield stored names with their names in the model, except for weights that transformers converts on load."""
    model = adapted.get_base_model()
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    state = {name.replace(".base_layer.", "."): weight for name, weight in model.state_dict().items()}
    for name in names:
        target, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if converted is None:
            yield name, target
