"""Refusals come at once and completions late: a run is judged by the rows that were begun, not by the first to end."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.errors import StoppedError
from cgd_ray.execution.chain_runner import ChainRunner
from cgd_ray.execution.coordinator import Snapshot
from cgd_ray.execution.metrics import Metrics
from cgd_ray.execution.progress import Progress
from cgd_ray.generation.guard import Guard
from cgd_ray.generation.planning import Plan, StageCount
from cgd_ray.inference.base import Completion, CompletionError, PromptTooLongError, Request
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.stage import TEXTS, Row
from cgd_ray.storage.filesystem import Store
from tests.unit.generation.test_planning import recipe

ROWS, IN_FLIGHT = 4096, 256
SLOW_SECONDS = 0.5


class Refusing(ScriptedEngine):
    """Refuses every nth row at once; what it answers takes its time."""

    def __init__(self, every: int, refusal: type[CompletionError]) -> None:
        super().__init__(ScriptedOptions(type="scripted"))
        self._every, self._refusal, self._asked = every, refusal, 0

    async def complete(self, request: Request) -> Completion:
        self._asked += 1
        if self._asked % self._every == 0:
            raise self._refusal("the prompt has 9000 tokens")
        await asyncio.sleep(SLOW_SECONDS)
        return await super().complete(request)


def row(number: int) -> Row:
    texts: dict[str, Any] = dict.fromkeys(TEXTS)
    return texts | {"prompt_id": f"{number:032x}", "sample": 0, "prompt": f"P {number}", "todo": ["draft"]}


def looked_at(root: Path, engine: ScriptedEngine, seconds: float) -> Metrics:
    """What had been done after so many seconds."""
    draft = open_run(recipe(root), Store(str(root))).stages.draft

    async def scenario() -> Metrics:
        runner = ChainRunner(engine, [draft], max_in_flight=IN_FLIGHT, flush_rows=ROWS, flush_seconds=30)
        work = asyncio.create_task(runner.run([row(number) for number in range(ROWS)]))
        await asyncio.sleep(seconds)
        metrics = runner.take_metrics()
        await runner.stop()
        await work
        return metrics

    return asyncio.run(scenario())


def judge(root: Path, metrics: Metrics) -> None:
    current = Plan({"draft": StageCount(pending=ROWS)}, again={"draft": 0})
    guard = Guard(recipe(root), Progress({"draft": ROWS}), [], 0.0, current)
    guard.check(Snapshot(metrics, engines=1, idle_seconds=0.0, deaths=0, ceiling=None, broken=None))


@pytest.mark.parametrize("refusal", [PromptTooLongError, CompletionError])
def test_a_few_refusals_before_any_completion_stop_nothing(tmp_path: Path, refusal: type[CompletionError]) -> None:
    metrics = looked_at(tmp_path, Refusing(12, refusal), SLOW_SECONDS / 5)
    lost = metrics["draft"].failed + metrics["draft"].over_long
    assert lost == metrics["draft"].rows >= 20  # nothing else has ended yet
    judge(tmp_path, metrics)


def test_an_engine_that_refuses_every_other_row_is_stopped_before_its_first_completion(tmp_path: Path) -> None:
    metrics = looked_at(tmp_path, Refusing(2, CompletionError), SLOW_SECONDS / 5)
    with pytest.raises(StoppedError, match=r"draft: \d+ of \d+ rows failed, more than generation.max_failed_fraction"):
        judge(tmp_path, metrics)


def test_over_long_prompts_never_stop_a_run_and_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = looked_at(tmp_path, Refusing(2, PromptTooLongError), SLOW_SECONDS / 5)
    judge(tmp_path, metrics)
    said = capsys.readouterr()
    assert "many prompts leave no room for a completion" in said.out + said.err
