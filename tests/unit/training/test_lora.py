"""Adapters, alone and beside a student in 4 bits: what they learn, and what they are once merged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import AutoModelForCausalLM, MixtralConfig

from cgd_ray.config.training import LoraSection
from cgd_ray.storage.tables import Table
from cgd_ray.training.checkpoint.adapter_merge import Mergeable
from cgd_ray.training.checkpoint.checkpoints import Checkpoints
from cgd_ray.training.job import RefusedError
from cgd_ray.training.loop.loss import summed_loss
from cgd_ray.training.loop.trainer import Trainer, train_rank
from tests.unit.training.loop import ROWS, make_job, mean_loss
from tests.unit.training.tiny import encoded_rows, tiny_tokenizer, write_tiny_model

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def encoded(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return encoded_rows(tiny_dir, tmp_path_factory.mktemp("root"), ROWS)


def test_an_adapter_is_learnt_beside_a_student_in_4_bits(encoded: Table, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, intermediate_size=128)  # bitsandbytes takes blocks of 64 on CPU
    lora = LoraSection(rank=4, alpha=8, quantization="nf4")
    job = make_job(encoded, tmp_path, lora=lora, batch_size=2, epochs=4, learning_rate=1e-2, precision="bf16")
    job = replace(job, checkpoints="qlora", student="qlora-student")
    losses: list[float] = []
    train_rank(job, lambda step: bool(losses.append(step.progress.loss)))  # type: ignore[func-returns-value]
    assert losses[-1] < 0.8 * losses[0]
    rank = Trainer(job)
    kinds = {type(module).__name__ for module in rank.engine.module.modules()}
    assert "Linear4bit" in kinds
    Checkpoints(encoded.store, job.checkpoints, 1).restore(rank.engine)
    in_4_bits = mean_loss(encoded, rank.engine.module.eval(), list(range(ROWS)))
    student = AutoModelForCausalLM.from_pretrained(encoded.store.path(job.student), dtype=torch.float32).eval()
    assert mean_loss(encoded, student, list(range(ROWS))) == pytest.approx(in_4_bits, rel=0.2)


def test_layers_in_4_bits_pass_gradients_on_after_a_validation(encoded: Table, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, intermediate_size=128)
    lora = LoraSection(rank=4, alpha=8, quantization="nf4")
    rank = Trainer(make_job(encoded, tmp_path, lora=lora, precision="bf16", validation_fraction=0.3))
    rank.validate()
    model = rank.engine.module
    (one,) = rank.passes_of(rank.trained.tolist())
    weights = [weight for name, weight in model.named_parameters() if "lora_B" in name]

    def gradients() -> torch.Tensor:
        loss = summed_loss(model, one.rows, rank.device)
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, weights)]).float()

    in_4_bits = gradients()
    for layer in [module for module in model.modules() if hasattr(module, "base_layer")]:
        packed = layer.base_layer.weight
        dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=torch.bfloat16)
        dense.weight.data = dequantize_4bit(packed.data, packed.quant_state).to(torch.bfloat16)
        layer.base_layer = dense
    assert (in_4_bits - gradients()).norm() < 0.02 * in_4_bits.norm()


@pytest.mark.parametrize("stage", [0, 2])
def test_a_merged_adapter_is_the_trained_model(encoded: Table, tiny_dir: Path, stage: int) -> None:
    lora = LoraSection(rank=4, alpha=8)
    job = make_job(encoded, tiny_dir, lora=lora, zero_stage=stage, batch_size=2, epochs=4, learning_rate=1e-2)
    job = replace(job, checkpoints=f"lora-{stage}", student=f"lora-student-{stage}")
    losses: list[float] = []
    train_rank(job, lambda step: bool(losses.append(step.progress.loss)))  # type: ignore[func-returns-value]
    assert losses[-1] < 0.8 * losses[0]
    rank = Trainer(job)
    Checkpoints(encoded.store, job.checkpoints, 1).restore(rank.engine)
    unmerged = mean_loss(encoded, rank.engine.module.eval(), list(range(ROWS)))
    student = AutoModelForCausalLM.from_pretrained(encoded.store.path(job.student), dtype=torch.float32).eval()
    assert mean_loss(encoded, student, list(range(ROWS))) == pytest.approx(unmerged, rel=1e-2)  # bfloat16 on disk
    base = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.bfloat16).state_dict()
    changed = {name for name, weight in student.state_dict().items() if not torch.equal(weight, base[name].float())}
    assert changed == {name for name in base if name.endswith("_proj.weight")}
    adapter = json.loads(encoded.store.read(f"{job.student}/adapter/adapter_config.json"))
    assert adapter["base_model_name_or_path"] == job.model
    assert encoded.store.exists(f"{job.student}/adapter/adapter_model.safetensors")


def test_the_adapter_is_stored_before_the_merge(
    encoded: Table, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise MemoryError

    job = make_job(encoded, tiny_dir, lora=LoraSection(rank=4, alpha=8))
    job = replace(job, checkpoints="lora-first", student="lora-first-student")
    with monkeypatch.context() as patch:
        patch.setattr(Mergeable, "write", die)
        with pytest.raises(MemoryError):
            train_rank(job, lambda _: False)
    assert encoded.store.names(f"{job.student}/adapter", ".safetensors") == ["adapter_model.safetensors"]
    assert encoded.store.names(job.student) == []
    assert train_rank(job, lambda _: False).resumed_from_step == 1
    assert encoded.store.names(f"{job.student}/adapter", ".safetensors") == ["adapter_model.safetensors"]
    AutoModelForCausalLM.from_pretrained(encoded.store.path(job.student))


def test_an_adapter_of_experts_is_merged_too(encoded: Table, tmp_path: Path) -> None:
    """They do not lie in the file as in the model."""
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(**small, num_hidden_layers=1, num_local_experts=2, vocab_size=400)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    job = make_job(encoded, tmp_path, lora=LoraSection(rank=4, alpha=8), learning_rate=1e-2)
    job = replace(job, checkpoints="experts", student="experts-student")
    train_rank(job, lambda _: False)
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path, encoded.store.path(job.student))
    )
    assert before.keys() == after.keys()
    changed = {name for name, weight in after.items() if (weight - before[name]).abs().max() > 1e-3}
    assert any("experts" in name for name in changed)


@pytest.mark.parametrize("targets", [["q_proj", "v_projj"], ["all-linear"], ["proj"]])
def test_layers_that_the_student_does_not_have_are_named(encoded: Table, tiny_dir: Path, targets: list[str]) -> None:
    with pytest.raises(RefusedError, match=rf"^training\.lora\.targets: the student has no layer '{targets[-1]}'"):
        Trainer(make_job(encoded, tiny_dir, lora=LoraSection(rank=4, targets=targets)))


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "embed_tokens"]])
def test_tied_embeddings_take_no_adapter(tmp_path: Path, targets: list[str]) -> None:
    write_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    table = encoded_rows(tmp_path / "tied", tmp_path / "root", ROWS)
    with pytest.raises(RefusedError, match=r"^training\.lora\.targets: .* are one tensor"):
        Trainer(make_job(table, tmp_path / "tied", lora=LoraSection(rank=4, targets=targets)))
