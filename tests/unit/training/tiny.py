"""A tiny random Llama with a small trained tokenizer, and examples, none of which needs a download."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cgd_ray.config.run import StorageSection
from cgd_ray.config.training import TrainingSection
from cgd_ray.methods import Example
from cgd_ray.prompts.chat_encoder import ChatEncoder, Encoded
from cgd_ray.prompts.conversation import Conversation, with_history
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.job import About, RankJob

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens whose pad token is its end-of-turn token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the sum of three apples and five pears is eight\n\n" * 20], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = template
    return fast


def tiny_config(**changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**settings | changes)


def write_tiny_model(folder: Path, **changes: Any) -> None:
    """A 2-layer random Llama in fp32, as a Hugging Face directory."""
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(**changes)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def encoded_rows(model: Path, root: Path | str, count: int) -> Table:
    """A table of that many rows: bare prompts with their refinements."""
    table = Table(Store(str(root)), "encoded", "tiny", ENCODED)
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(model), {})
    part = []
    for row in map(example, range(count)):
        one = encoder.encode(Conversation(with_history(row.prompt), row.refinement))
        assert isinstance(one, Encoded)
        key = {"prompt_id": row.prompt_id, "sample": 0, "view": "refsft"}
        part.append({**key, "input_ids": one.input_ids, "target_start": one.target_start})
    table.write_part("part-0", part)
    return table


def rank_job(encoded: Table, model: Path, training: dict[str, Any]) -> RankJob:
    """What a rank on CPU is told."""
    return RankJob(
        encoded,
        str(model),
        None,
        StorageSection(),
        TrainingSection.model_validate(training),
        seed=0,
        identity="tiny",
        checkpoints="checkpoints",
        name="tiny",
        figures="figures",
        student="student",
        about=About("", None, {}),
        device="cpu",
        threads=1,
    )


def example(number: int = 0, **changes: Any) -> Example:
    texts: dict[str, Any] = {
        "prompt_id": f"{number:032x}",
        "sample": 0,
        "prompt": f"What is {number} plus 3?",
        "draft": f"It is {number + 2}." + " Let me count." * (number % 5),
        "critique": "The sum is off by one.\nVerdict: wrong",
        "refinement": f"{number} plus 3 is {number + 3}." + " Done." * (number % 7),
        "verdict": "wrong",
    }
    return Example(**texts | changes)
