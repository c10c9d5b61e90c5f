from dataclasses import replace
from pathlib import Path

import pytest

from cgd_ray.config.training import TrainingSection
from cgd_ray.errors import ConfigError
from cgd_ray.methods import METHODS, Contexts, Example, MethodName
from cgd_ray.pipeline.preflight import _require_contexts
from cgd_ray.prompts.conversation import Conversation, SkippedRow, Turn, with_history
from cgd_ray.prompts.templates import load_prompts
from tests.unit.training.tiny import example

CONTEXTS = Contexts(load_prompts("default"))
SEVERAL_TURNS = Contexts(CONTEXTS.prompts, multi_turn=True)


def shown(row: Example, method: MethodName, contexts: Contexts = CONTEXTS) -> Conversation:
    conversation = METHODS[method].conversation(row, contexts)
    assert isinstance(conversation, Conversation)
    return conversation


def texts(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversation.turns]


def test_cgd_shows_prompt_draft_and_critique_and_learns_the_refinement() -> None:
    row = example(4)
    conversation = shown(row, "cgd")
    assert conversation.target == row.refinement
    (user,) = texts(conversation)
    places = [user.index(text) for text in (row.prompt, row.draft, row.critique)]
    assert places == sorted(places)
    assert row.refinement not in user


# By method: the texts of the row that its context holds, and the one that it learns.
EXPECTED: dict[MethodName, tuple[set[str], str]] = {
    "cgd": ({"prompt", "draft", "critique"}, "refinement"),
    "sft": ({"prompt"}, "reference"),
    "distill": ({"prompt"}, "answer"),
    "cft": ({"prompt", "draft"}, "critique"),
    "refsft": ({"prompt"}, "refinement"),
    "cgd-no-critique": ({"prompt", "draft"}, "refinement"),
    "cgd-no-draft": ({"prompt", "critique"}, "refinement"),
    "cgd-shuffled": ({"prompt", "draft", "other_critique"}, "refinement"),
}
FIELDS = ("prompt", "draft", "critique", "refinement", "answer", "reference", "other_critique")


@pytest.mark.parametrize("contexts", [CONTEXTS, SEVERAL_TURNS], ids=["single-turn", "multi-turn"])
@pytest.mark.parametrize("method", METHODS)
def test_a_context_holds_the_methods_texts_and_no_other(method: MethodName, contexts: Contexts) -> None:
    row = example(**{field: f"<the {field}>" for field in FIELDS})
    conversation = shown(row, method, contexts)
    context, learnt = EXPECTED[method]
    assert {field for field in FIELDS if getattr(row, field) in "\n".join(texts(conversation))} == context
    assert conversation.target == getattr(row, learnt)
    assert len(conversation.turns) % 2 == 1


def test_in_several_turns_the_draft_is_the_assistants_and_the_critique_the_users_answer() -> None:
    row = example(4)
    conversation = shown(row, "cgd", SEVERAL_TURNS)
    assert [turn.role for turn in conversation.turns] == ["user", "assistant", "user"]
    prompt, draft, answer = texts(conversation)
    assert (prompt, draft) == (row.prompt, row.draft)
    assert row.critique in answer
    assert shown(row, "cgd-no-draft", SEVERAL_TURNS) == shown(row, "cgd-no-draft")


@pytest.mark.parametrize("contexts", [CONTEXTS, SEVERAL_TURNS], ids=["single-turn", "multi-turn"])
@pytest.mark.parametrize("method", METHODS)
def test_what_stands_before_the_prompt_stands_before_every_context(method: MethodName, contexts: Contexts) -> None:
    history = (Turn("system", "Be short."), Turn("user", "Hi"), Turn("assistant", "Hello"))
    row = example(**{field: f"<the {field}>" for field in FIELDS})
    bare, conversation = shown(row, method, contexts), shown(replace(row, history=history), method, contexts)
    assert conversation == Conversation((*history, *bare.turns), bare.target)


@pytest.mark.parametrize(("method", "field"), [("refsft", "refinement"), ("sft", "reference"), ("distill", "answer")])
def test_bare_prompt_methods_differ_in_the_target_alone(method: MethodName, field: str) -> None:
    row = example(1, reference="the reference", answer="the answer")
    assert shown(row, method) == Conversation(with_history(row.prompt), getattr(row, field))


@pytest.mark.parametrize("method", ["sft", "distill", "cgd-shuffled"])
def test_a_missing_field_is_a_reason_not_an_error(method: MethodName) -> None:
    assert isinstance(METHODS[method].conversation(example(), CONTEXTS), SkippedRow)


def test_braces_and_jinja_in_model_text_stay_as_they_are() -> None:
    row = example(draft=r"\frac{1}{2} {{ prompt }} {% raw %}", critique="{% endif %} {x}")
    (user,) = texts(shown(row, "cgd"))
    assert row.draft in user
    assert row.critique in user


def test_a_context_that_no_method_may_be_without_is_refused_for_those_that_are(tmp_path: Path) -> None:
    for name in ("critique", "refine"):
        (tmp_path / f"{name}.jinja").write_text(name)
    (tmp_path / "context.jinja").write_text("{{ prompt }} {{ draft }} {{ critique }}")
    prompts = load_prompts(str(tmp_path))
    _require_contexts(prompts, TrainingSection(method="cgd"))
    with pytest.raises(ConfigError, match=r"template context\.jinja: .*without"):
        _require_contexts(prompts, TrainingSection(method="cgd", compared_with=["cgd", "cgd-no-critique"]))
