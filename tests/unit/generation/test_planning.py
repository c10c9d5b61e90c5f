"""Planning and the chain: rows enter at the stage that they lack, and nothing is done twice. No Ray."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.curation.run import run_curation
from cgd_ray.data.prompt_id import prompt_id
from cgd_ray.execution.chain_runner import ChainRunner
from cgd_ray.execution.results import parse_verdict
from cgd_ray.generation.planning import plan, with_attempts, work
from cgd_ray.inference.base import Completion, CompletionError, PromptTooLongError, Request
from cgd_ray.inference.scripted import ScriptedEngine, ScriptedOptions
from cgd_ray.stages.definitions import Stages
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.rows import FinishedRows, Join
from cgd_ray.stages.stage import WORK
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.fingerprint import fingerprint, parent_digest, text_digest
from cgd_ray.storage.schemas import PROMPTS
from cgd_ray.storage.tables import Table


def recipe(root: Path, **changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "run": {"name": "r", "root": str(root)},
        "data": {"type": "demo"},
        "student": {"model": "s", "engine": {"type": "scripted"}},
        "teacher": {"engine": {"type": "scripted", "model": "t"}},
        **changes,
    }
    return parse_recipe(tree, "test")


def prompts(count: int) -> pa.Table:
    texts = [f"What is {i} + {i}?" for i in range(count)]
    rows = [
        {
            "prompt_id": prompt_id(text),
            "split": "train",
            "prompt": text,
            "reference": str(2 * i),
            "kind": None,
            "novel": False,
            "source": f"t:{i}",
        }
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def joined(stages: Stages, rows: pa.Table, samples: int = 1) -> Join:
    """The rows as a prompts table of their own, joined with the stages' tables."""
    table = Table(stages.draft.results.store, "prompts", fingerprint({"rows": rows.to_pylist()}), PROMPTS)
    table.write_part("part-000000", rows)
    return Join(table, samples, stages.all)


def lacking(join: Join) -> pa.Table:
    """All rows that lack something."""
    names = {stage.name for stage in join.stages}
    return pa.concat_tables(
        [WORK.empty_table(), *(block for shard in join.shards() for block in work(join, shard, names))]
    )


class Counting(ScriptedEngine):
    """The scripted engine with a list of what it was asked."""

    def __init__(self, options: ScriptedOptions) -> None:
        super().__init__(options)
        self.asked: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request)
        return await super().complete(request)


def walk(stages: Stages, rows: pa.Table, engine: Counting, only: list[str] | None = None) -> list[dict[str, Any]]:
    chosen = [stage for stage in with_attempts(stages.all) if only is None or stage.name in only]

    async def scenario() -> list[dict[str, Any]]:
        runner = ChainRunner(engine, chosen, max_in_flight=64, flush_rows=100, flush_seconds=60)
        done = await runner.run(rows.to_pylist())
        await runner.close()
        return done

    return asyncio.run(scenario())


def engine(**options: Any) -> Counting:
    return Counting(ScriptedOptions(type="scripted", **options))


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    first = plan(joined(stages, prompts(5)))
    assert first.todo == {"draft": 5, "critique": 5, "refine": 5}
    walk(stages, lacking(joined(stages, prompts(5))), engine())
    second = plan(joined(stages, prompts(5)))
    assert second.is_done
    assert [count.ok for count in second.counts.values()] == [5, 5, 5]


def test_growing_the_data_generates_only_the_new_rows(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    walk(stages, lacking(joined(stages, prompts(5))), engine())
    asked = engine()
    walk(stages, lacking(joined(stages, prompts(8))), asked)
    assert len(asked.asked) == 3 * 3


def test_rows_enter_at_the_stage_that_they_lack(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    walk(stages, lacking(joined(stages, prompts(4))), engine(), only=["draft"])
    current = plan(joined(stages, prompts(4)))
    assert current.todo == {"draft": 0, "critique": 4, "refine": 4}
    asked = engine()
    walk(stages, lacking(joined(stages, prompts(4))), asked)
    assert {request.key.split("-")[0] for request in asked.asked} == {"critique", "refine"}


def test_blocks_of_a_dead_engine_read_what_came_of_their_shard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    rows = lacking(joined(stages, prompts(12)))
    walk(stages, rows.slice(0, 9), engine())
    read = list[str]()
    whole = Table.read
    monkeypatch.setattr(Table, "read", lambda table, *given: (read.append(table.stage), whole(table, *given))[1])
    catch_up = FinishedRows(stages.all)
    catch_up.look()
    found = [row for start in range(0, 12, 4) for row in catch_up.rows(rows.slice(start, 4).to_pylist())]
    assert [row["todo"] for row in found] == [[]] * 9 + [["draft", "critique", "refine"]] * 3
    assert all(row["refine"] for row in found[:9])
    assert sorted(read) == ["critique", "draft", "refine"]


def test_another_refine_prompt_reuses_drafts_and_critiques(tmp_path: Path) -> None:
    store, folder = Store(str(tmp_path)), tmp_path / "prompts"
    folder.mkdir()
    for name in ("critique", "refine", "context"):
        default = Path(__file__).parents[3] / "cgd_ray" / "prompts" / "default" / f"{name}.jinja"
        (folder / f"{name}.jinja").write_text(default.read_text())
    before = open_run(recipe(tmp_path, generation={"prompts": str(folder)}), store).stages
    (folder / "refine.jinja").write_text("Answer again, better.")
    after = open_run(recipe(tmp_path, generation={"prompts": str(folder)}), store).stages
    same = [a.results.fingerprint == b.results.fingerprint for a, b in zip(before.all, after.all, strict=True)]
    assert same == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"generation": {"draft": {"max_tokens": 5}}}, ["draft", "critique", "refine"]),
        ({"generation": {"critique": {"temperature": 0.5}}}, ["critique", "refine"]),
        ({"generation": {"refine": {"max_tokens": 5}}}, ["refine"]),
        ({"student": {"model": "other", "engine": {"type": "scripted"}}}, ["draft", "critique", "refine"]),
        ({"teacher": {"engine": {"type": "scripted", "model": "other"}}}, ["critique", "refine"]),
        ({"teacher": {"engine": {"type": "scripted", "model": "t", "replicas": 9, "max_in_flight": 2}}}, []),
        ({"run": {"name": "other", "root": "elsewhere", "seed": 5}}, []),  # greedy: the seed changes nothing
        ({"generation": {"execution": "staged", "max_total_tokens": 10}}, []),
    ],
)
def test_only_what_changes_results_changes_fingerprints(
    tmp_path: Path, changes: dict[str, Any], changed: list[str]
) -> None:
    store = Store(str(tmp_path))
    before, after = open_run(recipe(tmp_path), store).stages, open_run(recipe(tmp_path, **changes), store).stages
    differing = [
        a.name for a, b in zip(before.all, after.all, strict=True) if a.results.fingerprint != b.results.fingerprint
    ]
    assert differing == changed


def test_a_failed_row_is_kept_with_its_reason_and_tried_again(tmp_path: Path) -> None:
    class Failing(Counting):
        async def complete(self, request: Request) -> Completion:
            if request.key.startswith("critique"):
                raise CompletionError("HTTP 503\nfrom the endpoint")
            return await super().complete(request)

    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    walk(stages, lacking(joined(stages, prompts(3))), Failing(ScriptedOptions(type="scripted")))
    after = plan(joined(stages, prompts(3)))
    assert (after.counts["critique"].failed, after.todo) == (3, {"draft": 0, "critique": 3, "refine": 3})
    kept = stages.critique.results.read().to_pylist()
    assert {row["error"] for row in kept} == {"HTTP 503 from the endpoint"}
    walk(stages, lacking(joined(stages, prompts(3))), engine())
    assert plan(joined(stages, prompts(3))).is_done


def test_work_is_the_same_each_time_that_it_is_read_though_rows_are_done_and_merged_meanwhile(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    join, names = joined(stages, prompts(12)), {stage.name for stage in stages.all}
    walk(stages, lacking(join), engine(fail_fraction=0.4))
    [shard] = join.shards()
    earlier = join.before(with_attempts(stages.all))
    first = pa.concat_tables(work(earlier, shard, names))
    assert 3 < len(first) < 12
    walk(stages, first.slice(1, 2), engine())
    for stage in stages.all:
        table = stage.results
        merged, parts = table.read(), table.parts()
        table.write_part("part-0002-merged-000000", merged)
        for part in parts:
            table.store.remove(f"{table.folder}/{part}")
    assert pa.concat_tables(work(earlier, shard, names)) == first
    assert len(lacking(join)) == len(first) - 2


def test_nothing_is_paid_for_after_a_truncated_draft(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    asked = engine(truncate_fraction=1.0)
    walk(stages, lacking(joined(stages, prompts(3))), asked)
    assert len(asked.asked) == 3
    after = plan(joined(stages, prompts(3)))
    assert after.is_done
    assert (after.counts["draft"].truncated, after.counts["refine"].blocked) == (3, 3)


def test_a_critique_of_another_draft_is_not_used(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    walk(stages, lacking(joined(stages, prompts(1))), engine())
    rows = stages.draft.results.read().to_pylist()
    other = {"text": "another draft", "digest": text_digest("another draft")}
    for part in stages.draft.results.parts():
        stages.draft.results.store.remove(f"{stages.draft.results.folder}/{part}")
    stages.draft.results.write_part("part-0001-x-000000", [{**rows[0], **other}])
    assert plan(joined(stages, prompts(1))).todo == {"draft": 0, "critique": 1, "refine": 1}


class Salted(Counting):
    """Other texts at every call, as sampling makes them; half an emoji among them, as a cut answer may hold."""

    async def complete(self, request: Request) -> Completion:
        made = await super().complete(request)
        return replace(made, text=f"{len(self.asked)} {id(self)} \ud83d {made.text}")


def test_two_runs_that_do_not_know_of_each_other_agree_in_the_end(tmp_path: Path) -> None:
    """Without any lease, each going on from its own texts, whatever the other has stored meanwhile."""
    stages, rows = open_run(recipe(tmp_path), Store(str(tmp_path))).stages, prompts(20)
    one, other = Salted(ScriptedOptions(type="scripted")), Salted(ScriptedOptions(type="scripted"))
    held = lacking(joined(stages, rows))
    mine, theirs = (
        [{**row, "todo": ["critique", "refine"]} for row in walk(stages, held, each, ["draft"])]
        for each in (one, other)
    )
    walk(stages, pa.Table.from_pylist(theirs, WORK), other)
    walk(stages, pa.Table.from_pylist(mine[:10], WORK), one)  # it was killed then
    made = list(joined(stages, rows))
    for row in made:
        for name, inputs in (("critique", ("prompt", "draft")), ("refine", ("prompt", "draft", "critique"))):
            if result := row.results[name]:
                assert result["parent"] == parent_digest(*(text_digest(row.texts[text]) for text in inputs))
    left = lacking(joined(stages, rows))
    assert 0 < len(left) <= 10  # where the draft of the killed one was the first
    walk(stages, left, one)
    assert plan(joined(stages, rows)).is_done


def test_the_same_prompt_with_other_white_space_is_done_once_and_then_stays_done(tmp_path: Path) -> None:
    # Its id is the same, the text that the model sees is not.
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    walk(stages, lacking(joined(stages, prompts(1))), engine())
    spaced = prompts(1).set_column(2, PROMPTS.field("prompt"), pa.array(["What is  0 + 0?"]))
    current = plan(joined(stages, spaced))
    assert current.todo == {"draft": 1, "critique": 1, "refine": 1}
    walk(stages, lacking(joined(stages, spaced)), engine())
    assert plan(joined(stages, spaced)).is_done
    assert plan(joined(stages, prompts(1))).is_done


def test_samples_have_their_own_seeds_and_results(tmp_path: Path) -> None:
    changed = recipe(tmp_path, generation={"draft": {"samples": 3, "temperature": 1.0}})
    stages = open_run(changed, Store(str(tmp_path))).stages
    asked = engine()
    walk(stages, lacking(joined(stages, prompts(2), 3)), asked)
    seeds = [request.decoding.seed for request in asked.asked if request.key.startswith("draft")]
    assert len(set(seeds)) == 6
    assert len(stages.refine.results.read()) == 6


def test_the_refine_conversation_continues_the_critique(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    asked = engine()
    walk(stages, lacking(joined(stages, prompts(1))), asked)
    critique, refine = (next(r for r in asked.asked if r.key.startswith(name)) for name in ("critique", "refine"))
    assert refine.turns[0] == critique.turns[0]
    assert [turn.role for turn in refine.turns] == ["user", "assistant", "user"]


def test_the_reference_is_shown_to_the_teacher_only_where_asked_for(tmp_path: Path) -> None:
    table = prompts(1).set_column(3, PROMPTS.field("reference"), pa.array(["SECRET-GOLD"]))
    for reference, shown in (("none", False), ("dataset", True)):
        root = tmp_path / reference
        changed = recipe(root, generation={"critique": {"reference": reference}})
        stages, asked = open_run(changed, Store(str(root))).stages, engine()
        walk(stages, lacking(joined(stages, table)), asked)
        assert any("SECRET-GOLD" in turn.content for request in asked.asked for turn in request.turns) is shown


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("It is fine.\nVerdict: right", "right"),
        ("**Verdict: Wrong**", "wrong"),
        ("Verdict: right\nOn reflection:\nVerdict: wrong.", "wrong"),
        ("The verdict: right or wrong?", None),
        ("", None),
    ],
)
def test_the_last_verdict_line_counts(text: str, verdict: str | None) -> None:
    assert parse_verdict(text) == verdict


class Strict(Counting):
    """Has no room for the critique of one row."""

    async def complete(self, request: Request) -> Completion:
        if request.key.startswith("critique") and "What is 1 + 1?" in request.turns[0].content:
            raise PromptTooLongError("the prompt has 9000 tokens")
        return await super().complete(request)


def test_a_prompt_without_room_is_done_with_and_never_tried_again(tmp_path: Path) -> None:
    stages = open_run(recipe(tmp_path), Store(str(tmp_path))).stages
    walk(stages, lacking(joined(stages, prompts(3))), Strict(ScriptedOptions(type="scripted")))
    after = plan(joined(stages, prompts(3)))
    assert after.is_done
    assert (after.counts["critique"].ok, after.counts["critique"].over_long) == (2, 1)
    assert after.counts["refine"].blocked == 1


def test_curation_is_the_same_whatever_another_run_adds_to_the_tables(tmp_path: Path) -> None:
    made, store = recipe(tmp_path, curation={"require_correct": False}), Store(str(tmp_path))
    stages = open_run(made, store).stages
    walk(stages, lacking(joined(stages, prompts(3))), engine())
    first = run_curation(made, joined(stages, prompts(3)))
    walk(stages, lacking(joined(stages, prompts(6))), engine())
    again = run_curation(made, joined(stages, prompts(3)))
    assert again.reused
    assert again.examples.fingerprint == first.examples.fingerprint
    assert not run_curation(made, joined(stages, prompts(6))).reused
