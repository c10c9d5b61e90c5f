"""Completions that nothing may be learnt from: they are failed, paid for and tried again, and the mend is said."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.config.evaluation import Decoding
from cgd_ray.execution.chain_runner import ChainRunner
from cgd_ray.inference.base import Completion, Request
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.stages.definitions import evaluation_stage
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.stage import TEXTS
from cgd_ray.storage.filesystem import Store
from tests.scripted import scripted_recipe


class Says(ScriptedEngine):
    """Answers with given texts, by stage."""

    def __init__(self, **texts: str) -> None:
        super().__init__(ScriptedOptions(type="scripted"))
        self._texts = texts
        self.truncated = False

    async def complete(self, request: Request) -> Completion:
        made = await super().complete(request)
        return replace(made, text=self._texts.get(request.key.split("-")[0], made.text), truncated=self.truncated)


def results(root: Path, engine: ScriptedEngine, stages: list[Any] | None = None) -> dict[str, dict[str, Any]]:
    """The only row's results, by stage."""
    recipe = scripted_recipe(root, 2, {}, {}, answer={"enabled": True}, critique={"reference": "teacher"})
    built = open_run(recipe, Store(str(root))).stages
    chosen = stages or [stage for stage in built.all if stage.name != "draft"]

    async def scenario() -> None:
        runner = ChainRunner(engine, chosen, max_in_flight=1, flush_rows=1, flush_seconds=0.01)
        row = dict.fromkeys(TEXTS) | {"prompt_id": "00" * 16, "sample": 0, "prompt": "What is 2 + 2?", "reference": "4"}
        await runner.run([row | {"draft": "It is 5.", "todo": [stage.name for stage in chosen]}])
        await runner.close()

    asyncio.run(scenario())
    return {stage.name: row for stage in chosen for row in stage.results.read().to_pylist()}


@pytest.mark.parametrize("empty", ["", "  \n\t"])
@pytest.mark.parametrize(
    ("stage", "made"), [("answer", []), ("critique", ["answer"]), ("refine", ["answer", "critique"])]
)
def test_an_empty_text_is_a_failure_of_its_own_stage(tmp_path: Path, stage: str, made: list[str], empty: str) -> None:
    found = results(tmp_path, Says(**{stage: empty}))
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(made, "ok") | {stage: "failed"}
    assert found[stage]["error"] == "the completion is empty"
    assert found[stage]["prompt_tokens"] > 0


def test_an_empty_text_that_was_cut_off_is_truncated(tmp_path: Path) -> None:
    engine = Says(answer="")
    engine.truncated = True
    assert results(tmp_path, engine)["answer"]["status"] == "truncated"


def test_thinking_in_a_text_fails_it_with_the_mend(tmp_path: Path) -> None:
    found = results(tmp_path, Says(critique="<think>Hm.</think>\nIt is wrong.\nVerdict: wrong"))
    assert found["critique"]["status"] == "failed"
    assert "(<think>)" in found["critique"]["error"]
    assert "set reasoning_parser (vLLM) or reasoning_tags (an endpoint)" in found["critique"]["error"]


def test_an_empty_answer_in_evaluation_is_wrong_and_no_failure(tmp_path: Path) -> None:
    recipe = scripted_recipe(tmp_path, 2, {}, {})
    stage = evaluation_stage(recipe, Store(str(tmp_path)), "scripted:s", Decoding())
    assert results(tmp_path, Says(evaluation=""), [stage])["evaluation"]["status"] == "ok"
