"""What an exported student's card says of where its texts come from."""

from typing import Any

import pytest

from cgd_ray.config.recipe import parse_recipe
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.checkpoint.model_card import model_card
from cgd_ray.training.dataset.encode import Counts, EncodedExamples

DATA, TEACHER = "are the data set's", "were written by the teacher"


def card(**training: Any) -> str:
    tree = {
        "run": {"name": "r", "root": "/r"},
        "data": {"type": "jsonl", "path": "d.jsonl", "reference_column": "answer"},
        "student": {"model": "small"},
        "teacher": {"engine": {"type": "scripted", "model": "large"}},
        "generation": {"answer": {"enabled": True}},
        "training": training,
    }
    encoded = EncodedExamples(Table(Store("/r"), "encoded", "f", ENCODED), Counts(3, 4, 5, {"empty target": 1}))
    return " ".join(model_card(parse_recipe(tree, "test"), encoded, "i").split())


@pytest.mark.parametrize(
    ("training", "learnt", "licences"),
    [
        ({"method": "cgd", "compared_with": ["sft"]}, "It learnt refined answers of the teacher large.", [TEACHER]),
        ({"method": "sft"}, "It learnt the references of the data set.", [DATA]),
        ({"method": "cft"}, "It learnt critiques of the teacher large.", [TEACHER]),
        (
            {"method": "mix", "mix": {"sft": 1, "distill": 1}},
            "It learnt answers of the teacher large and the references of the data set.",
            [DATA, TEACHER],
        ),
    ],
)
def test_whose_texts_it_learnt(training: dict[str, Any], learnt: str, licences: list[str]) -> None:
    said = card(**training)
    assert learnt in said
    assert [licence for licence in (DATA, TEACHER) if licence in said] == licences


def test_an_adapter_beside_four_bits() -> None:
    assert "rank 8, alpha 16, beside nf4" in card(lora={"rank": 8, "alpha": 16, "quantization": "nf4"}, zero_stage=2)
