"""What the conversion of the two demo models left behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig


@pytest.mark.parametrize(
    ("fixture", "turn_end", "parameters"),
    [("student_dir", "<|im_end|>", 134_515_008), ("teacher_dir", "<|im_end|>", 630_167_424)],
)
def test_the_directory_is_whole(request: pytest.FixtureRequest, fixture: str, turn_end: str, parameters: int) -> None:
    folder: Path = request.getfixturevalue(fixture)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 2?"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith(f"2 + 2?{turn_end}\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == turn_end
    assert GenerationConfig.from_pretrained(folder).eos_token_id[0] == tokenizer.eos_token_id
    assert tokenizer.model_max_length == AutoConfig.from_pretrained(folder).max_position_embeddings
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in weights.values()) == parameters
    assert not list(folder.glob("*.gguf"))
    assert json.loads((folder / "cgd-model.json").read_text())["licence"] == "Apache-2.0"
