"""A student with its adapter merged file by file, against PEFT's merge of the whole model in memory."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from cgd_ray.config.training import LoraSection
from cgd_ray.training.checkpoint.adapter_merge import Mergeable, NotPlainError
from cgd_ray.training.lora import adapter_model, merge_in_memory, write_adapter

Weights = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "n_embd": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False,
}  # fmt: skip
LORA = LoraSection(rank=4, alpha=12)


def write_model(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES), dtype=dtype)
    model.save_pretrained(folder, **options)


def random_adapter(source: Path, lora: LoraSection) -> Weights:
    generator = torch.Generator().manual_seed(1)
    names = adapter_model(source, lora).named_parameters()
    return {
        name: torch.randn(weight.shape, generator=generator).to(torch.bfloat16)
        for name, weight in names
        if weight.requires_grad
    }


def merge(source: Path, lora: LoraSection, weights: Weights, folder: Path, **options: int) -> None:
    adapted = adapter_model(source, lora)
    write_adapter(adapted, weights, "base", folder / "adapter")
    Mergeable(source, adapted).write(folder, **options)


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", "all-linear"),
        ("llama", ["embed_tokens", "lm_head", "q_proj"]),
        ("gpt2", "all-linear"),  # keeps its matrices transposed
        ("mixtral", ["q_proj", "o_proj"]),  # whose experts lie one by one in the file, together in the model
        ("gemma3_text", "all-linear"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_peft_merges(tmp_path: Path, kind: str, targets: Any, dtype: torch.dtype) -> None:
    write_model(kind, tmp_path / "base", dtype)
    lora = LORA.model_copy(update={"targets": targets})
    weights = random_adapter(tmp_path / "base", lora)
    merge(tmp_path / "base", lora, weights, tmp_path / "merged", shard_bytes=4000)
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 2
    AutoConfig.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "merged")
    expected = merge_in_memory(tmp_path / "base", lora, weights).state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").state_dict()
    assert loaded.keys() == expected.keys()
    assert [name for name, weight in loaded.items() if not torch.equal(weight, expected[name])] == []


def test_a_student_in_shards_and_its_adapter(tmp_path: Path) -> None:
    write_model("llama", tmp_path / "base", max_shard_size="8KB")
    weights = random_adapter(tmp_path / "base", LORA)
    save_file({"x": torch.zeros(1)}, tmp_path / "base" / "consolidated.safetensors")  # nobody loads it
    merge(tmp_path / "base", LORA, weights, tmp_path / "merged")
    (file,) = (tmp_path / "merged").glob("*.safetensors")
    merged = load_file(file)
    expected = merge_in_memory(tmp_path / "base", LORA, weights).state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in merged.items())
    adapter = load_file(tmp_path / "merged" / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == len(weights)
    assert adapter.keys() == {name.replace(".default.", ".") for name in weights}


def test_weights_that_are_not_stored_as_the_model_has_them_are_named(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(stored | {name: stored[name].to(torch.float8_e4m3fn)}, file, metadata={"format": "pt"})
    with pytest.raises(NotPlainError, match=rf"^{re.escape(name)}$"):
        Mergeable(tmp_path, adapter_model(tmp_path, LORA))
    file.unlink()
    with pytest.raises(NotPlainError):
        Mergeable(tmp_path, adapter_model(tmp_path, LORA))


def anonymous_bytes() -> int:
    """Memory of this process but for pages of files."""
    (size,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(size) * 1024


def test_a_merge_holds_one_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24}
    monkeypatch.setitem(globals(), "SIZES", SIZES | large)
    write_model("llama", tmp_path / "base", torch.bfloat16)
    parameters = (tmp_path / "base" / "model.safetensors").stat().st_size / 2
    weights = random_adapter(tmp_path / "base", LORA)
    done, peak = threading.Event(), [before := anonymous_bytes()]

    def watch() -> None:
        while not done.wait(0.001):
            peak.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(tmp_path / "base", LORA, weights, tmp_path / "merged", shard_bytes=10_000_000)
    done.set()
    watcher.join()
    assert parameters > 90e6
    assert max(peak) - before < parameters  # bytes; in memory it takes four and more for each
