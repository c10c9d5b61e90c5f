"""Where engines run: real Ray clusters with pretend GPUs, scripted engines.

Large engines beside small ones, kinds of GPUs, a node that comes late, nodes on which no engine starts.
"""

import io
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table
from rich.console import Console

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.generation.run import GenerationResult
from cgd_ray.inference.base import Completion, EngineDiedError, Request
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.report.status import print_status
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from tests.scripted import generate, scripted_recipe, use_engine

ROWS = 40


def recipe(root: Path, student: dict[str, Any], teacher: dict[str, Any], **generation: Any) -> Recipe:
    few = {"max_in_flight": 4}
    return scripted_recipe(root, ROWS, few | student, few | teacher, **{"stall_timeout_s": 120, **generation})


def require_whole(result: GenerationResult) -> None:
    assert result.counts["refine"]["ok"] == ROWS - 1
    held = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert held == []


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A head without GPUs, a node of two A100s, a node of two H100s; joined as a submitted job does."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for kind in ("A100", "H100"):
        cluster.add_node(num_cpus=2, num_gpus=2, resources={f"accelerator_type:{kind}": 1})
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def node_of(kind: str) -> str:
    [node] = [node["NodeID"] for node in ray.nodes() if f"accelerator_type:{kind}" in node["Resources"]]
    return str(node)


@pytest.mark.usefixtures("two_nodes")
def test_small_engines_do_not_take_the_place_of_a_large_one(tmp_path: Path) -> None:
    result = generate(recipe(tmp_path, {"gpus": 1, "replicas": 2}, {"gpus": 2}))
    assert result.execution == "streaming"
    require_whole(result)


@pytest.mark.usefixtures("two_nodes")
def test_what_the_totals_hold_and_the_nodes_do_not_runs_one_after_the_other(tmp_path: Path) -> None:
    """3.8 of 4 GPUs, but no GPU holds two parts of 0.6."""
    result = generate(recipe(tmp_path, {"gpus": 0.6, "replicas": 3}, {"gpus": 2}))
    assert result.execution == "staged"
    require_whole(result)


@pytest.mark.usefixtures("two_nodes")
def test_an_engine_that_takes_any_gpu_leaves_the_kind_that_another_needs(tmp_path: Path) -> None:
    result = generate(recipe(tmp_path, {"gpus": 2}, {"gpus": 1, "replicas": 2, "accelerator_type": "H100"}))
    assert result.execution == "streaming"
    require_whole(result)


@pytest.mark.usefixtures("two_nodes")
@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"gpus": 4}, "0.01 CPUs and 4 GPUs on one node; the largest node has 2 CPUs and 2 GPUs"),
        ({"gpus": 3, "replicas": 2}, "6 GPUs in 2 parts, each of .* and 3 GPUs on one node; the largest node has"),
        ({"gpus": 1, "accelerator_type": "B200"}, r"no node has accelerator type B200 \(there are: A100, H100\)"),
    ],
)
def test_what_no_node_holds_is_refused_at_once(tmp_path: Path, engine: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^teacher.engine asks for .*{said}"):
        generate(recipe(tmp_path, {"gpus": 1}, engine))
    assert not list(tmp_path.glob("tables/draft/*/part-*"))


def test_a_role_without_room_for_all_works_and_grows_with_a_node_that_comes_late(
    two_nodes: Cluster, tmp_path: Path
) -> None:
    """Two teachers would take both nodes; the student has one of them until the third comes."""
    teacher = {"gpus": 2, "replicas": 2, "latency_ms": 1000}
    made = recipe(tmp_path, {"gpus": 1}, teacher, execution="streaming")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(generate, made)
        while not list(tmp_path.glob("tables/refine/*/part-*")):
            time.sleep(0.2)
        late = two_nodes.add_node(num_cpus=2, num_gpus=2)
        while late.node_id not in engine_nodes() and not running.done():
            time.sleep(0.2)
        assert not running.done()
        require_whole(running.result())
    two_nodes.remove_node(late)


def engine_nodes() -> set[str]:
    groups = placement_group_table().values()
    return {node for group in groups if group["state"] == "CREATED" for node in group["bundles_to_node_id"].values()}


@pytest.mark.usefixtures("two_nodes")
def test_an_engine_that_cannot_start_on_a_node_starts_on_another(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text(node_of("A100"))
    teacher = {"gpus": 1, "replicas": 2, "min_replicas": 2, "refuse_on": str(tmp_path / "bad")}
    require_whole(generate(recipe(tmp_path, {}, {**teacher, "latency_ms": 200})))


@pytest.mark.usefixtures("two_nodes")
def test_a_run_goes_on_with_fewer_engines_down_to_the_minimum(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each node holds one; of three engines of which one cannot start, none finds another place."""
    (tmp_path / "bad").write_text(node_of("A100"))
    teacher = {"gpus": 2, "replicas": 2, "refuse_on": str(tmp_path / "bad")}
    with pytest.raises(CgdError, match=rf"^scripted refusal of node {node_of('A100')}$"):
        generate(recipe(tmp_path, {}, {**teacher, "min_replicas": 2, "latency_ms": 500}))
    made = recipe(tmp_path, {}, teacher)
    require_whole(generate(made))
    trouble = f"an engine of the teacher on node {node_of('A100')} could not start"
    assert trouble in "".join(capfd.readouterr())
    text = io.StringIO()
    print_status(open_run(made, Store(made.run.root)), Console(file=text))
    assert text.getvalue().count(trouble) == 1


@pytest.mark.usefixtures("two_nodes")
def test_what_is_wrong_everywhere_ends_the_run_with_the_engines_own_error(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text(" ".join(node["NodeID"] for node in ray.nodes()))
    began = time.monotonic()
    with pytest.raises(CgdError, match=r"^scripted refusal of node"):
        generate(recipe(tmp_path, {}, {"gpus": 1, "replicas": 4, "refuse_on": str(tmp_path / "bad")}))
    assert time.monotonic() - began < 200  # not the stall timeout, at each of many tries


class GoesBad(ScriptedEngine):
    """The first teacher that has made some critiques dies, and its node starts no engine from then on."""

    def __init__(self, options: ScriptedOptions, bad: Path, *, with_process: bool) -> None:
        super().__init__(options)
        self._bad = bad
        self._with_process = with_process
        self._count = 0

    async def complete(self, request: Request) -> Completion:
        self._count += self._options.model == "t"
        if self._count > ROWS // 8 and not self._bad.exists():
            self._bad.write_text(ray.get_runtime_context().get_node_id())
            self._dead = True
            if self._with_process:
                os._exit(1)
        if self._dead:
            raise EngineDiedError("its GPU fell off the bus")
        return await super().complete(request)


@pytest.mark.usefixtures("two_nodes")
@pytest.mark.parametrize("with_process", [pytest.param(False, marks=pytest.mark.long), True])
def test_an_engine_that_is_lost_leaves_its_rows_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, with_process: bool
) -> None:
    bad = partial(GoesBad, bad=tmp_path / "bad", with_process=with_process)
    use_engine(monkeypatch, bad)
    made = recipe(tmp_path, {}, {"gpus": 2, "replicas": 2, "latency_ms": 100, "refuse_on": str(tmp_path / "bad")})
    require_whole(generate(made))
    assert (tmp_path / "bad").exists()


@pytest.mark.usefixtures("two_nodes")
def test_the_only_engine_is_lost_with_many_blocks_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They all wait for the end, and take nothing from what is being written."""
    bad = partial(GoesBad, bad=tmp_path / "bad", with_process=False)
    use_engine(monkeypatch, bad)
    many = {"max_in_flight": 64, "latency_ms": 300}
    made = recipe(tmp_path, many, {**many, "gpus": 2, "refuse_on": str(tmp_path / "bad")})
    with pytest.raises(CgdError, match=r"^scripted refusal of node"):
        generate(made)
