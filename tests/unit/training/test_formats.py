from collections import Counter

import pytest

from cgd_ray.config.training import TrainingSection, ViewName
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.training.formats import Conversation, Lacking, view, view_name
from tests.unit.training.tiny import example

PROMPTS = load_prompts("default")


def test_cgd_shows_prompt_draft_and_critique_and_learns_the_refinement() -> None:
    row = example(4)
    conversation = view(row, "cgd", PROMPTS)
    assert isinstance(conversation, Conversation)
    assert conversation.target == row.refinement
    places = [conversation.user.index(text) for text in (row.prompt, row.draft, row.critique)]
    assert places == sorted(places)
    assert row.refinement not in conversation.user


@pytest.mark.parametrize(("method", "field"), [("refsft", "refinement"), ("sft", "reference"), ("distill", "answer")])
def test_bare_prompt_methods_differ_in_the_target_alone(method: ViewName, field: str) -> None:
    row = example(1, reference="the reference", answer="the answer")
    assert view(row, method, PROMPTS) == Conversation(row.prompt, getattr(row, field))


@pytest.mark.parametrize("method", ["sft", "distill"])
def test_a_missing_field_is_a_reason_not_an_error(method: ViewName) -> None:
    assert isinstance(view(example(), method, PROMPTS), Lacking)


def test_braces_and_jinja_in_model_text_stay_as_they_are() -> None:
    row = example(draft=r"\frac{1}{2} {{ prompt }} {% raw %}", critique="{% endif %} {x}")
    conversation = view(row, "cgd", PROMPTS)
    assert isinstance(conversation, Conversation)
    assert row.draft in conversation.user
    assert row.critique in conversation.user


def test_mix_draws_by_key_alone_and_in_proportion_to_the_weights() -> None:
    training = TrainingSection(method="mix", mix={"cgd": 3.0, "refsft": 1.0})
    rows = [example(number) for number in range(2000)]
    drawn = {row.prompt_id: view_name(row, training, seed=1) for row in rows}
    again = TrainingSection(method="mix", mix={"refsft": 1.0, "cgd": 3.0})
    assert {row.prompt_id: view_name(row, again, seed=1) for row in reversed(rows)} == drawn
    assert 1420 < Counter(drawn.values())["cgd"] < 1580
    assert drawn != {row.prompt_id: view_name(row, training, seed=2) for row in rows}


def test_mix_draws_samples_of_one_prompt_apart() -> None:
    training = TrainingSection(method="mix", mix={"cgd": 1.0, "refsft": 1.0})
    assert len({view_name(example(5, sample=sample), training, 0) for sample in range(20)}) == 2
