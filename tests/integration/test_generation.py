"""Generation through Ray Data on a real Ray cluster of two nodes, with the scripted engine: flow, resume, ceilings."""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.errors import CgdError, StoppedError
from cgd_ray.execution.actor_pool import Chain, stream_rows
from cgd_ray.execution.driver import run_chains
from cgd_ray.generation import run
from cgd_ray.generation.run import GenerationResult, run_generation
from cgd_ray.pipeline.run import run_pipeline
from cgd_ray.report.status import Wanted, print_rows, print_status
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import RESULTS


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    nodes.add_node(num_cpus=2)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def recipe(root: Path, **changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "run": {"name": "r", "root": str(root)},
        "data": {"type": "demo", "limit": 60, "holdout": {"count": 6}},
        "student": {"model": "s", "engine": {"type": "scripted", "replicas": 2}},
        "teacher": {"engine": {"type": "scripted", "model": "t", "replicas": 2}},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value}
    return parse_recipe(tree, "test")


def generate(made: Recipe) -> GenerationResult:
    store = Store(made.run.root)
    return run_generation(open_run(made, store))


def columns(result: GenerationResult) -> list[pa.Table]:
    deterministic = ["prompt_id", "sample", "parent", "status", "text", "verdict", "completion_tokens"]
    return [stage.results.read().select(deterministic) for stage in result.stages.all]


def test_staged_and_streaming_make_the_same_tables_and_a_second_run_makes_nothing(tmp_path: Path) -> None:
    made = {
        execution: generate(recipe(tmp_path / execution, generation={"execution": execution}))
        for execution in ("staged", "streaming")
    }
    assert {name: result.execution for name, result in made.items()} == {"staged": "staged", "streaming": "streaming"}
    for one, other in zip(columns(made["staged"]), columns(made["streaming"]), strict=True):
        assert one.equals(other)
        assert len(one) == 60
    for stage in made["streaming"].stages.all:
        assert len(stage.telemetry.read()) == 60
    again = generate(recipe(tmp_path / "staged", generation={"execution": "staged"}))
    assert again.reused
    assert again.counts["refine"]["ok"] == 60


def test_status_tells_what_is_there_and_what_would_be_made(tmp_path: Path) -> None:
    def status(made: Recipe) -> str:
        text = io.StringIO()
        print_status(open_run(made, Store(made.run.root)), Console(file=text, width=200))
        return text.getvalue()

    generate(recipe(tmp_path, generation={"execution": "staged"}))
    assert status(recipe(tmp_path)).endswith("/runs/r: all generated; what comes after it is not complete\n")
    more = status(recipe(tmp_path, data={"limit": 70}, generation={"refine": {"max_tokens": 9}}))
    states = [line.split() for line in more.splitlines() if line.startswith("│")]
    assert [(row[1], row[5], row[-2]) for row in states] == [
        ("draft", "60", "10"),
        ("critique", "60", "10"),
        ("refine", "0", "70"),
    ]
    assert "generation.refine.max_tokens is 9, was 1024" in more
    assert more.endswith("/runs/r: not complete\n")


def test_inspect_finds_failed_rows_and_single_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgd_ray.data.prepare.PART_ROWS", 10)
    engine = {"type": "scripted", "fail_fraction": 0.05}
    made = recipe(tmp_path, student={"engine": engine})
    drafts = generate(made).stages.all[0].results.read().to_pylist()
    failed = [row["prompt_id"] for row in drafts if row["status"] == "failed"]
    assert 0 < len(failed) < 20

    def inspect(wanted: Wanted, count: int = 100) -> list[str]:
        text = io.StringIO()
        print_rows(open_run(made, Store(made.run.root)), Console(file=text, width=200), count, wanted)
        return [line.split()[1] for line in text.getvalue().splitlines() if " sample 0" in line]

    assert inspect(Wanted(failed=True)) == failed
    assert inspect(Wanted(row=drafts[7]["prompt_id"])) == [drafts[7]["prompt_id"]]
    assert inspect(Wanted(row=drafts[40]["prompt_id"][:10])) == [drafts[40]["prompt_id"]]
    start = drafts[20]["prompt_id"][0]
    assert inspect(Wanted(row=start)) == [row["prompt_id"] for row in drafts if row["prompt_id"].startswith(start)]
    assert len(inspect(Wanted(row="demo/seen:3"))) == 1
    assert inspect(Wanted(row="0" * 32)) == []


def test_many_shards_are_planned_on_the_cluster_and_give_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate(recipe(tmp_path / "whole"))
    monkeypatch.setattr("cgd_ray.data.prepare.PART_ROWS", 4)
    sharded = generate(recipe(tmp_path / "sharded"))
    assert len(list((tmp_path / "sharded").glob("tables/prompts/*/*.parquet"))) > 10
    assert sharded.counts == whole.counts
    for one, other in zip(columns(whole), columns(sharded), strict=True):
        assert one.equals(other)
    assert generate(recipe(tmp_path / "sharded")).reused


@pytest.mark.parametrize("execution", ["staged", "streaming"])
def test_shards_of_more_rows_than_the_engines_are_given_are_read_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: str
) -> None:
    monkeypatch.setattr("cgd_ray.data.prepare.PART_ROWS", 700)
    engine = {"type": "scripted", "max_in_flight": 2}
    made = recipe(
        tmp_path,
        data={"limit": 2000},
        student={"engine": engine},
        teacher={"engine": {**engine, "model": "t"}},
        generation={"execution": execution, "stall_timeout_s": 60},
    )
    rooms: list[int] = []

    def recorded(chains: list[Chain], *rest: Any) -> None:
        rooms.append(stream_rows(chains))
        run_chains(chains, *rest)

    monkeypatch.setattr(run, "run_chains", recorded)
    result = generate(made)
    assert max(rooms) < 700
    assert len(list(tmp_path.glob("tables/prompts/*/*.parquet"))) >= 3
    assert result.counts["refine"]["ok"] == 2000


def test_a_command_lists_a_table_once_for_each_time_that_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path, training={"enabled": False}, generation={"execution": "staged"})
    listings, entries = Counter[str](), Store._entries

    def counted(self: Store, folder: str) -> Any:
        listings[folder] += 1
        return entries(self, folder)

    monkeypatch.setattr(Store, "_entries", counted)
    run_pipeline(open_run(made, Store(made.run.root)))
    tables = [stage.results for stage in open_run(made, Store(made.run.root)).stages.all]
    assert [listings[table.folder] for table in tables] == [3, 3, 3]  # at the start, under the lease, and when made
    listings.clear()
    run_pipeline(open_run(made, Store(made.run.root)))
    assert [listings[table.folder] for table in tables] == [1, 1, 1]
    assert max(listings.values()) <= 2


def test_a_text_that_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    """A plan reads no texts, so only a reader meets it, when the engines are at work."""
    made = recipe(tmp_path, generation={"execution": "staged"})
    stages = generate(made).stages
    for part in stages.refine.results.parts():
        stages.refine.results.store.remove(f"{stages.refine.results.folder}/{part}")
    [part] = [tmp_path / stages.draft.results.folder / name for name in stages.draft.results.parts()][:1]
    texts = pq.ParquetFile(part).metadata.row_group(0).column(RESULTS.get_field_index("text"))
    content = bytearray(part.read_bytes())
    content[texts.data_page_offset + texts.total_compressed_size // 2] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(CgdError) as caught:
        generate(made)
    assert re.fullmatch(
        rf"{part}: damaged .*\. Fix: restore it, or delete it and its rows are made again", str(caught.value)
    )


def test_a_run_that_passed_rows_by_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_chains", lambda *_: None)
    with pytest.raises(CgdError, match="60 rows were skipped"):
        generate(recipe(tmp_path))


def test_failed_rows_are_done_by_the_next_run(tmp_path: Path) -> None:
    teacher = {"engine": {"type": "scripted", "model": "t", "fail_fraction": 0.3}}
    made = recipe(tmp_path, teacher=teacher, generation={"max_failed_fraction": 1.0})
    first = generate(made)
    failed = first.counts["critique"]["failed"]
    assert 0 < failed < 60
    healthy = generate(recipe(tmp_path))
    assert healthy.metrics["critique"]["rows"] == failed
    assert healthy.counts["refine"]["ok"] == 60


def test_rows_without_a_draft_load_no_teacher_and_stop_no_later_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = {"engine": {"type": "scripted", "fail_fraction": 0.3}}
    data = {"limit": 100}
    first = generate(recipe(tmp_path, student=student, data=data, generation={"max_failed_fraction": 1.0}))
    failed = first.counts["draft"]["failed"]
    assert failed >= 20  # enough for max_failed_fraction to judge
    loaded: list[str] = []

    def recorded(chains: list[Chain], *rest: Any) -> None:
        loaded.extend(chain.role for chain in chains)
        run_chains(chains, *rest)

    monkeypatch.setattr(run, "run_chains", recorded)
    again = generate(recipe(tmp_path, student=student, data=data, generation={"execution": "staged"}))
    assert loaded == ["student"]
    assert again.metrics["draft"]["failed"] == failed


def test_what_another_command_made_meanwhile_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, sole_maker = recipe(tmp_path), run._sole_maker

    @contextlib.contextmanager
    def late(*arguments: Any) -> Iterator[Any]:
        """Another command makes everything after this one has planned, and gives its leases back before this looks."""
        monkeypatch.setattr(run, "_sole_maker", sole_maker)
        assert not generate(made).reused
        with sole_maker(*arguments) as leases:
            yield leases

    monkeypatch.setattr(run, "_sole_maker", late)
    result = generate(made)
    assert result.metrics.get("draft", {"rows": 0})["rows"] == 0
    assert result.counts["refine"]["ok"] == 60
    for stage in result.stages.all:
        assert sum(len(part) for part in stage.results.batches()) == 60


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    teacher = {"engine": {"type": "scripted", "model": "t", "fail_fraction": 1.0}}
    with pytest.raises(StoppedError, match=r"critique: \d+ of \d+ rows failed.*max_failed_fraction 0.1"):
        generate(recipe(tmp_path, teacher=teacher, data={"limit": 200}))


def test_a_few_rows_that_all_fail_stop_the_run_with_their_error(tmp_path: Path) -> None:
    teacher = {"engine": {"type": "scripted", "model": "t", "fail_fraction": 1.0}}
    with pytest.raises(StoppedError, match=r"critique: all 5 rows failed; the last error: "):
        generate(recipe(tmp_path, teacher=teacher, data={"limit": 5}))


def test_a_token_ceiling_stops_and_the_same_command_continues(tmp_path: Path) -> None:
    # Slow enough that the driver stops the run long before its last row.
    slow = {"engine": {"type": "scripted", "model": "t", "latency_ms": 100, "max_in_flight": 8}}
    with pytest.raises(StoppedError, match="max_total_tokens 500 is reached"):
        generate(recipe(tmp_path, teacher=slow, generation={"max_total_tokens": 500}, data={"limit": 300}))
    after = generate(recipe(tmp_path, data={"limit": 300}))
    assert after.counts["refine"]["ok"] == 300
    assert 0 < sum(counted["rows"] for counted in after.metrics.values()) < 3 * 300


def test_an_engine_that_cannot_start_ends_the_run_with_its_own_words(tmp_path: Path) -> None:
    engine = {"type": "openai", "model": "m", "base_url": "http://127.0.0.1:9", "api_key_env": "CGD_NO_SUCH_KEY"}
    with pytest.raises(CgdError, match="CGD_NO_SUCH_KEY is not set"):
        generate(recipe(tmp_path, teacher={"engine": engine}))
