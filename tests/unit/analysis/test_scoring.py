"""Scores of target tokens: against one forward pass without padding, in any order, in any batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cgd_ray.analysis.scoring import Scorer
from cgd_ray.prompts.chat_encoder import Encoded
from tests.unit.training.tiny import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return folder


def rows() -> list[Encoded]:
    generator = np.random.default_rng(0)
    lengths = [(12, 5), (40, 39), (7, 6), (33, 4), (12, 11), (25, 10), (40, 2)]
    return [Encoded(generator.integers(5, 60, length).tolist(), start) for length, start in lengths]


def scorer(model: Path, batch_tokens: int = 10_000) -> Scorer:
    return Scorer(model, "cpu", "float32", threads=1, batch_tokens=batch_tokens)


def test_scores_are_those_of_a_plain_forward_pass(model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for row, scores in zip(rows(), scorer(model).score(rows()), strict=True):
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([row.input_ids])).logits[0, row.target_start - 1 : -1]
        chances = torch.softmax(logits, dim=-1)
        targets = torch.tensor(row.input_ids[row.target_start :])
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        assert scores.nll == pytest.approx(nll.numpy(), abs=1e-5)
        assert scores.entropy == pytest.approx(torch.special.entr(chances).sum(-1).numpy(), abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 80, 10_000])
def test_neither_order_nor_batches_matter(model: Path, batch_tokens: int) -> None:
    given = rows()
    known = scorer(model).score(given)
    other = scorer(model, batch_tokens).score(given[::-1])[::-1]
    for one, two in zip(known, other, strict=True):
        assert one.nll == pytest.approx(two.nll, abs=1e-5)
        assert one.entropy == pytest.approx(two.entropy, abs=1e-5)


def test_large_logits_are_split(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = scorer(model).score(rows())
    monkeypatch.setattr("cgd_ray.analysis.scoring._LOGIT_BYTES", 1)
    one_by_one = scorer(model)
    assert [len(batch) for batch in one_by_one._batches(rows())] == [1] * len(rows())
    for one, two in zip(known, one_by_one.score(rows()), strict=True):
        assert one.nll == pytest.approx(two.nll, abs=1e-5)
