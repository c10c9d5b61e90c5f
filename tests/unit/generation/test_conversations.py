"""Turns before a prompt on their way through the stages, curation and every method's training context. No Ray."""

from pathlib import Path

import pyarrow as pa
import pytest

from cgd_ray.curation.run import run_curation
from cgd_ray.data.prompt_id import prompt_id
from cgd_ray.generation.planning import plan
from cgd_ray.methods import Example
from cgd_ray.prompts.conversation import Turn, with_history
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import PROMPTS
from tests.unit.generation.test_planning import engine, joined, lacking, recipe, walk

QUESTION = "And 3 more?"
HISTORY = (Turn("system", "Be short."), Turn("user", "2 + 2?"), Turn("assistant", "4"))


def prompts(history: tuple[Turn, ...]) -> pa.Table:
    row = {
        "prompt_id": prompt_id(QUESTION, history),
        "split": "train",
        "prompt": QUESTION,
        "reference": "7",
        "novel": False,
        "source": "f:1",
        "history": [turn.as_message() for turn in history] or None,
    }
    return pa.Table.from_pylist([row], schema=PROMPTS)


def test_drafts_and_answers_are_asked_in_turns_and_critiques_of_the_whole_conversation(tmp_path: Path) -> None:
    made = recipe(tmp_path, generation={"answer": {"enabled": True}})
    stages, asked = open_run(made, Store(str(tmp_path))).stages, engine()
    walk(stages, lacking(joined(stages, prompts(HISTORY))), asked)
    seen = {request.key.partition("-")[0]: request.turns for request in asked.asked}
    assert seen["draft"] == seen["answer"] == with_history(QUESTION, HISTORY)
    conversation = f"[system]\nBe short.\n\n[user]\n2 + 2?\n\n[assistant]\n4\n\n[user]\n{QUESTION}"
    assert [turn.role for turn in seen["critique"]] == ["user"]
    assert [turn.role for turn in seen["refine"]] == ["user", "assistant", "user"]
    assert conversation in seen["critique"][0].content
    assert conversation in seen["refine"][2].content


def test_results_of_one_question_in_two_conversations_are_kept_apart(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    walk(stages, lacking(joined(stages, prompts(HISTORY))), engine())
    assert plan(joined(stages, prompts(HISTORY))).is_done
    others = [HISTORY[1:], (), (*HISTORY[:2], Turn("assistant", "5")), (Turn("user", "Be short."), *HISTORY[1:])]
    for other in others:
        # As though the ids were the same: the digest alone must tell them apart.
        same_id = prompts(other).set_column(0, PROMPTS.field("prompt_id"), prompts(HISTORY)["prompt_id"])
        assert plan(joined(stages, same_id)).todo == {"draft": 1, "critique": 1, "refine": 1}


def test_ids_follow_the_conversation_and_not_its_typing() -> None:
    typed = (Turn("system", "Be  short.\n"), *HISTORY[1:])
    assert prompt_id(QUESTION, typed) == prompt_id(QUESTION, HISTORY)
    others = [(), HISTORY[:1], HISTORY[1:], (Turn("user", "Be short."), *HISTORY[1:])]
    assert len({prompt_id(QUESTION, one) for one in (HISTORY, *others)}) == 5


@pytest.mark.parametrize("history", [HISTORY, ()])
def test_examples_have_what_stood_before(tmp_path: Path, history: tuple[Turn, ...]) -> None:
    made = recipe(tmp_path, curation={"require_correct": False, "require_verdict": False, "drop_mentions": False})
    store = Store(str(tmp_path))
    stages = open_run(made, store).stages
    join = joined(stages, prompts(history))
    walk(stages, lacking(join), engine())
    [row] = run_curation(made, join).examples.read().to_pylist()
    assert Example.from_row(row).history == history
