"""Engines, processes and nodes that die while a real Ray cluster generates: every row once, nothing paid for twice."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from botocore.exceptions import EndpointConnectionError
from ray.cluster_utils import Cluster

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import CgdError, StoppedError
from cgd_ray.execution.actor_pool import ChainActor
from cgd_ray.generation.run import GenerationResult
from cgd_ray.inference.base import Completion, Request
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.runtime.capacity import Demand
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.stage import Row
from cgd_ray.storage import compaction, transfers
from cgd_ray.storage.filesystem import Store
from tests.scripted import generate, scripted_recipe, use_engine
from tests.servers import below

ROWS = 150


def recipe(root: Path, student: dict[str, Any], teacher: dict[str, Any], **generation: Any) -> Recipe:
    few = {"max_in_flight": 8}
    return scripted_recipe(root, ROWS, few | student, few | teacher, **{"execution": "streaming", **generation})


def require_whole(result: GenerationResult, lost: int = 0) -> None:
    """Each row has exactly one result per stage, committed once; `lost` rows have no critique and no refinement."""
    for stage in result.stages.all:
        committed = pa.concat_tables(list(stage.results.batches()))
        finished = Counter(
            row["prompt_id"] for row in committed.select(["prompt_id", "status"]).to_pylist() if row["status"] == "ok"
        )
        assert max(finished.values()) == 1, stage.name
        assert len(finished) == ROWS - 1 - (lost if stage.name != "draft" else 0)
    assert result.counts["refine"]["ok"] == ROWS - 1 - lost


class Sabotaged(ScriptedEngine):
    """Its actor dies once when a block's rows are on storage and the ledger knows, but Ray has not got the block."""

    def __init__(self, options: ScriptedOptions, died: Path) -> None:
        super().__init__(options)
        run = ChainActor._run

        async def run_and_die(actor: ChainActor, rows: list[Row]) -> list[Row]:
            rows = await run(actor, rows)
            mark = died / f"died-{actor._chain.role}"
            if not mark.exists():
                mark.touch()
                os._exit(1)
            return rows

        ChainActor._run = run_and_die  # type: ignore[method-assign]


@pytest.mark.usefixtures("cluster")
def test_a_block_whose_rows_are_on_storage_is_not_paid_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_engine(monkeypatch, partial(Sabotaged, died=tmp_path))
    require_whole(generate(recipe(tmp_path, {"latency_ms": 20}, {"latency_ms": 20})))
    assert {file.name for file in tmp_path.glob("died-*")} == {"died-student", "died-teacher"}


class BreaksDown(ScriptedEngine):
    """Notes what it has answered; the teacher's cannot go on after so many critiques, or not begin."""

    def __init__(self, options: ScriptedOptions, folder: Path, error: Exception, *, begins: bool) -> None:
        super().__init__(options)
        self._folder = folder
        self._error = error
        self._begins = begins

    async def start(self) -> None:
        if not self._begins and self._options.model == "t":
            await asyncio.sleep(1)  # until there are drafts
            raise self._error

    async def complete(self, request: Request) -> Completion:
        stage = request.key.split("-")[0]
        note = self._folder / f"answered-{stage}"
        if stage == "critique" and note.exists() and len(note.read_text()) >= ROWS // 4:
            raise self._error
        completion = await super().complete(request)
        with note.open("a") as file:
            file.write(".")
        return completion


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("begins", "error", "said"),
    [
        (False, CgdError("the teacher broke down"), r"^the teacher broke down$"),
        (
            True,
            EndpointConnectionError(endpoint_url="http://s3"),
            r"^generation stopped: EndpointConnectionError: .*http://s3",
        ),
        (
            True,
            KeyError("the cause"),
            r"^generation stopped by an unexpected .*: KeyError: 'the cause' \(test_faults\.py:\d+; log: /.*\.err on ",
        ),
    ],
)
def test_an_engine_that_cannot_go_on_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, *, begins: bool
) -> None:
    breaking = partial(BreaksDown, folder=tmp_path, error=error, begins=begins)
    use_engine(monkeypatch, breaking)
    made = recipe(tmp_path, {"latency_ms": 100}, {"latency_ms": 30})
    made = made.model_copy(update={"storage": made.storage.model_copy(update={"flush_seconds": 60})})
    with pytest.raises(CgdError, match=said):
        generate(made)
    store = Store(made.run.root)
    for stage in open_run(made, store).stages.all if begins else [open_run(made, store).stages.draft]:
        answered = len((tmp_path / f"answered-{stage.name}").read_text())
        committed = sum(len(rows) for rows in stage.results.batches())
        assert committed == answered > 0, stage.name


def while_generating(made: Recipe, strike: Callable[[], None], after: float) -> GenerationResult:
    """Generate, and strike once some refinements are on storage."""

    def wait_and_strike() -> None:
        folder = Path(made.run.root) / "tables" / "refine"
        while not list(folder.glob("*/part-*")):
            time.sleep(0.05)
        time.sleep(after)
        strike()

    striker = threading.Thread(target=wait_and_strike, daemon=True)
    striker.start()
    result = generate(made)
    striker.join(1)
    assert not striker.is_alive(), "the run was over before the strike"
    return result


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("fault", ["die_on", "kill_on"])
def test_a_row_that_kills_its_engine_is_quarantined_alone(tmp_path: Path, fault: str) -> None:
    made = recipe(tmp_path, {}, {fault: "Question 77."})
    result = generate(made)
    require_whole(result, lost=1)
    assert result.counts["critique"]["quarantined"] == 1
    [row] = [row for row in result.stages.critique.results.read().to_pylist() if row["status"] == "quarantined"]
    assert "with this row on it, the last time alone" in row["error"]
    assert generate(made).reused  # a quarantined row is not tried again, unless that is asked for
    healed = generate(recipe(tmp_path, {}, {}, retry_quarantined=True))
    assert healed.metrics["critique"]["rows"] == healed.metrics["refine"]["rows"] == 1
    require_whole(healed)


@pytest.mark.usefixtures("cluster")
def test_a_row_that_kills_its_engine_still_is_quarantined_again(tmp_path: Path) -> None:
    made = recipe(tmp_path, {}, {"die_on": "Question 77."}, retry_quarantined=True)
    for _ in range(2):
        result = generate(made)
        require_whole(result, lost=1)
        assert result.counts["critique"]["quarantined"] == 1


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
def test_a_killed_engine_process_costs_only_what_was_in_flight(tmp_path: Path, seed: int) -> None:
    made = recipe(tmp_path, {"latency_ms": 50}, {"latency_ms": 50})

    def strike() -> None:
        victims = below("ray::MapWorker")
        os.kill(victims[seed % len(victims)].pid, signal.SIGKILL)

    require_whole(while_generating(made, strike, after=0.3 * seed))


def test_a_lost_node_costs_only_what_was_in_flight(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2)
    made = recipe(tmp_path, {"latency_ms": 50, "replicas": 2}, {"latency_ms": 50, "replicas": 2})
    require_whole(while_generating(made, lambda: cluster.remove_node(node, allow_graceful=False), after=0.5))


@pytest.mark.long
def test_rows_of_a_lost_node_are_done_where_another_engine_had_all_the_room(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node holds one teacher. The lost one keeps what Ray gave to it, and starts again in the other's room."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)  # as a job has joined it: fewer engines may do
    demand = ScriptedOptions.demand

    def large(options: ScriptedOptions, *others: Any, **more: Any) -> Demand:
        return Demand(cpus=1.5, gpus=0) if options.model == "t" else demand(options, *others, **more)

    monkeypatch.setattr(ScriptedOptions, "demand", large)
    node = cluster.add_node(num_cpus=2)
    made = recipe(tmp_path, {}, {"latency_ms": 200, "replicas": 2}, execution="staged")
    require_whole(while_generating(made, lambda: cluster.remove_node(node, allow_graceful=False), after=0.5))


@pytest.mark.usefixtures("cluster")
def test_small_parts_are_merged_while_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine that dies in between, so that rows are looked up in parts that come and go."""
    for name, value in (("EVERY_SECONDS", 0.5), ("FEW_PARTS", 4), ("_PER_SHARD", 0)):
        monkeypatch.setattr(compaction, name, value)
    made = recipe(tmp_path, {"latency_ms": 50}, {"latency_ms": 100})
    made = made.model_copy(update={"storage": made.storage.model_copy(update={"flush_seconds": 0.1})})

    def strike() -> None:
        os.kill(below("ray::MapWorker")[0].pid, signal.SIGKILL)
        while not list(tmp_path.glob("tables/refine/*/part-*-merged*")):  # before the run is over
            time.sleep(0.05)

    require_whole(while_generating(made, strike, after=0.5))


_OWNER = """
import subprocess
from cgd_ray.runtime import processes
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
processes.record(child.pid, "a test's")
print(child.pid)
"""


@pytest.mark.usefixtures("cluster")
def test_processes_whose_engine_is_gone_are_ended_before_the_next_phase(tmp_path: Path) -> None:
    left: list[psutil.Process] = []

    def strike() -> None:
        said = subprocess.run([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True, check=True).stdout
        left.append(psutil.Process(int(said)))

    require_whole(while_generating(recipe(tmp_path, {}, {"latency_ms": 100}), strike, after=0))
    assert left
    assert not left[0].is_running() or left[0].status() == psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("cluster")
def test_a_run_that_hangs_is_stopped_and_keeps_what_it_has(tmp_path: Path) -> None:
    made = recipe(tmp_path, {}, {"hang_on": "Question 77."}, stall_timeout_s=40)
    with pytest.raises(StoppedError, match=r"no progress for \d+ s .* 2 of 2 engines loaded"):
        generate(made)
    healed = generate(recipe(tmp_path, {}, {}))
    assert healed.metrics["refine"]["rows"] <= 16
    require_whole(healed)


class Fetches(ScriptedEngine):
    """Comes from far: a gigabyte a second."""

    async def start(self) -> None:
        transfers.expect(40 * 10**9)
        for _ in range(40):
            await asyncio.sleep(1)
            transfers.arrived(10**9)


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_an_engine_that_fetches_its_model_is_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use_engine(monkeypatch, Fetches)
    require_whole(generate(recipe(tmp_path, {}, {}, stall_timeout_s=30)))
    assert re.search(r"engines fetch their models +gigabytes=\d+\.0/80\.0", "".join(capfd.readouterr()))


@pytest.mark.usefixtures("cluster")
def test_a_row_that_is_never_answered_fails_alone(tmp_path: Path) -> None:
    result = generate(recipe(tmp_path, {}, {"hang_on": "Question 77.", "request_timeout_s": 3}))
    require_whole(result, lost=1)
    assert result.counts["critique"]["failed"] == 1
    [row] = [row for row in result.stages.critique.results.read().to_pylist() if row["status"] == "failed"]
    assert row["error"] == "no answer within 3 s (engine.request_timeout_s)"


@pytest.mark.usefixtures("cluster")
def test_a_row_that_a_template_cannot_show_fails_alone(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    shutil.copytree(resources.files("cgd_ray.prompts") / "default", folder)
    with (folder / "critique.jinja").open("a") as file:
        file.write('{% if "Question 77." in prompt %}{{ nothing_of_that_name }}{% endif %}')
    result = generate(recipe(tmp_path, {}, {}, prompts=str(folder)))
    require_whole(result, lost=1)
    [row] = [row for row in result.stages.critique.results.read().to_pylist() if row["status"] == "failed"]
    assert row["error"] == "template critique.jinja: 'nothing_of_that_name' is undefined"
