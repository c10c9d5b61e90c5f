"""A critique without its verdict line gets it from one more request, if the recipe asks for that."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.execution.chain_runner import ChainRunner
from cgd_ray.inference.base import Completion, CompletionError, Request
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.stage import TEXTS
from cgd_ray.storage.filesystem import Store
from tests.scripted import scripted_recipe


class Critic(ScriptedEngine):
    """Writes a critique, and answers when asked for the verdict."""

    def __init__(self, critique: str, answer: str | None) -> None:
        super().__init__(ScriptedOptions(type="scripted"))
        self._critique, self._answer = critique, answer
        self.asked: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        made = await super().complete(request)
        if request.key.endswith("-verdict"):
            self.asked.append(request)
            if self._answer is None:
                raise CompletionError("no room")
            return replace(made, text=self._answer, prompt_tokens=30, completion_tokens=1)
        if request.key.startswith("critique"):
            return replace(made, text=self._critique, prompt_tokens=20, completion_tokens=10)
        return made


def criticised(root: Path, engine: Critic, verdict: str = "asked") -> dict[str, dict[str, Any]]:
    recipe = scripted_recipe(root, 2, {}, {}, critique={"verdict": verdict})
    stages = open_run(recipe, Store(str(root))).stages.teacher

    async def scenario() -> None:
        runner = ChainRunner(engine, stages, max_in_flight=1, flush_rows=1, flush_seconds=0.01)
        row = dict.fromkeys(TEXTS) | {"prompt_id": "00" * 16, "sample": 0, "prompt": "What is 2 + 2?"}
        await runner.run([row | {"draft": "It is 5.", "todo": ["critique", "refine"]}])
        await runner.close()

    asyncio.run(scenario())
    return {stage.name: row for stage in stages for row in stage.results.read().to_pylist()}


def test_the_answer_becomes_the_verdict_line(tmp_path: Path) -> None:
    engine = Critic("2 + 2 is not 5.\n", "wrong")
    found = criticised(tmp_path, engine)
    assert found["critique"]["text"] == "2 + 2 is not 5.\n\nVerdict: wrong"
    assert found["critique"]["verdict"] == "wrong"
    assert (found["critique"]["prompt_tokens"], found["critique"]["completion_tokens"]) == (50, 11)
    assert found["refine"]["status"] == "ok"
    [asked] = engine.asked
    assert [turn.role for turn in asked.turns] == ["user", "assistant", "user"]
    assert asked.turns[1].content == "2 + 2 is not 5.\n"
    assert asked.decoding.choices == ("right", "wrong")


@pytest.mark.parametrize(
    ("critique", "verdict"), [("Well done.\nVerdict: right", "right"), ("No.\n**Verdict: wrong**", "wrong")]
)
def test_a_critique_with_a_verdict_is_not_asked_again(tmp_path: Path, critique: str, verdict: str) -> None:
    engine = Critic(critique, "right")
    assert criticised(tmp_path, engine)["critique"]["verdict"] == verdict
    assert engine.asked == []


def test_by_default_nothing_is_asked(tmp_path: Path) -> None:
    engine = Critic("2 + 2 is not 5.", "wrong")
    found = criticised(tmp_path, engine, "written")
    assert (found["critique"]["text"], found["critique"]["verdict"]) == ("2 + 2 is not 5.", None)
    assert engine.asked == []


@pytest.mark.parametrize("answer", [None, "maybe", "right or wrong", ""])
def test_without_a_clear_answer_the_critique_stays_as_it_is(tmp_path: Path, answer: str | None) -> None:
    found = criticised(tmp_path, Critic("2 + 2 is not 5.", answer))
    assert (found["critique"]["status"], found["critique"]["text"]) == ("ok", "2 + 2 is not 5.")
    assert found["critique"]["verdict"] is None


def test_asking_makes_another_table(tmp_path: Path) -> None:
    names = {
        verdict: open_run(scripted_recipe(tmp_path, 2, {}, {}, critique={"verdict": verdict}), Store(str(tmp_path)))
        for verdict in ("written", "asked")
    }
    tables = {verdict: run.stages.critique.results.fingerprint for verdict, run in names.items()}
    assert tables["written"] != tables["asked"]
