"""Curation filters: what is dropped, and that its reason is said."""

from typing import Any

import pytest

from cgd_ray.config.generation import CurationSection
from cgd_ray.config.training import TrainingSection
from cgd_ray.curation.filters import build_filters, targets
from cgd_ray.grading.mentions import mentions_inputs
from cgd_ray.grading.overlap import copy_rate


def reasons(row: dict[str, Any], training: TrainingSection | None = None, **settings: Any) -> list[str]:
    learnt = targets(training or TrainingSection())
    found = (judge(row) for _, judge in build_filters(CurationSection(**settings), learnt))
    return [reason for reason in found if reason]


def row(**changes: Any) -> dict[str, Any]:
    good = {
        "prompt": "What is 2 + 2?",
        "draft": "5",
        "critique": "2 + 2 is 4.\nVerdict: wrong",
        "verdict": "wrong",
        "refine": r"2 + 2 = \boxed{4}",
        "refine_tokens": 9,
        "reference": "4",
    }
    return {**good, **changes}


def test_a_good_row_is_kept() -> None:
    assert reasons(row(), require_correct=True, max_refinement_tokens=9) == []


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({"refine": "  \n"}, {}, "empty"),
        ({"critique": ""}, {"require_verdict": False}, "empty"),
        ({"draft": "\t"}, {}, "empty"),
        ({"verdict": None}, {}, "no verdict"),
        ({"refine_tokens": 10}, {"max_refinement_tokens": 9}, "over-long"),
        ({"refine": r"The student's answer is wrong; it is \boxed{4}"}, {}, "mentions its inputs"),
        ({"refine": r"\boxed{5}"}, {"require_correct": True}, "wrong"),
        ({"reference": None}, {"require_correct": True}, "no reference"),
        ({"reference": "It depends\non many things."}, {"require_correct": True}, "reference without an answer"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason(changes: dict[str, Any], settings: dict[str, Any], reason: str) -> None:
    assert reasons(row(**changes), **settings) == [reason]


@pytest.mark.parametrize("name", ["draft", "critique", "refine"])
def test_an_empty_text_is_held_against_its_own_stage(name: str) -> None:
    faults = [stage for stage, judge in build_filters(CurationSection(), set()) if judge(row(**{name: " "})) == "empty"]
    assert faults == [name]


DISTILL = TrainingSection(method="distill")
COMPARED = TrainingSection(method="cgd", compared_with=["cgd", "mix", "distill"])


@pytest.mark.parametrize("training", [DISTILL, COMPARED])
@pytest.mark.parametrize(
    ("answer", "found"), [(r"\boxed{4}", []), (r"\boxed{5}", ["wrong"]), (None, ["missing", "wrong"])]
)
def test_every_learnt_text_is_judged(training: TrainingSection, answer: str | None, found: list[str]) -> None:
    judged = row(answer=answer or "")
    assert reasons(judged, training, require_correct=True) == found
    assert reasons(judged, require_correct=True) == []  # nobody learns the answer


@pytest.mark.parametrize(
    "text",
    [
        "As noted in the critique, the sum is 4.",
        "The student made an error.",
        "Your draft forgot a step.",
        "The previous answer was wrong.",
        "The previous answers were wrong.",
        "Your drafts forgot a step.",
        "4.\nVerdict: right",
        "The student\u2019s answer is right.",
        "A student shares apples. As noted in the critique, the sum is 4.",
    ],
)
def test_mentions_are_found(text: str) -> None:
    assert mentions_inputs(text, "A student shares apples. What is 2 + 2?")


@pytest.mark.parametrize(
    "text",
    ["Each student gets 4 apples.", "The students need 4.", "The first step is to add.", "A draft horse eats 4 kg."],
)
def test_ordinary_words_are_no_mentions(text: str) -> None:
    prompt = "A student shares apples. A draft horse eats some."
    assert not mentions_inputs(text, prompt)


def test_the_copy_rate_counts_ngrams_of_the_target() -> None:
    assert copy_rate("a b c d e f", "a b c d e", n=5) == 1.0
    assert copy_rate("a b c d e f", "a b c d x f", n=5) == 0.0
    assert copy_rate("a b c", "a b", n=5) == 0.0
