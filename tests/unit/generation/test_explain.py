"""Which setting makes a stage new."""

from pathlib import Path
from typing import Any

from cgd_ray.data.prepare import prompts_table
from cgd_ray.generation.explain import explain
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage.filesystem import Store
from tests.unit.generation.test_planning import recipe


def explained(tmp_path: Path, **changes: Any) -> list[str]:
    store = Store(str(tmp_path))
    made = recipe(tmp_path, **changes)
    return explain(store, made, open_run(made, store).stages.all)


def describe(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    prompts, content = prompts_table(recipe(tmp_path), store)
    prompts.describe({"content": content, "counts": {}})
    for stage in open_run(recipe(tmp_path), store).stages.all:
        stage.results.describe(stage.description)


def test_a_fresh_root_has_nothing_to_compare_with(tmp_path: Path) -> None:
    assert explained(tmp_path) == [
        f"{name}: the first table of its kind under this root" for name in ("prompts", "draft", "critique", "refine")
    ]


def test_arguments_of_memory_and_batching_leave_tables_as_they_are(tmp_path: Path) -> None:
    def drafts(**arguments: Any) -> str:
        engine = {"type": "vllm", "engine_args": arguments}
        student = {"model": str(tmp_path), "engine": engine}
        made = recipe(tmp_path, student=student)
        return open_run(made, Store(str(tmp_path))).stages.draft.results.fingerprint

    (tmp_path / "config.json").write_text("{}")
    assert drafts() == drafts(gpu_memory_utilization=0.85, max_num_batched_tokens=8192)
    assert drafts() != drafts(rope_scaling={"factor": 2.0})


def test_a_setting_is_named_where_it_is_and_its_followers_say_so(tmp_path: Path) -> None:
    describe(tmp_path)
    prompts, draft, critique, refine = explained(tmp_path, generation={"critique": {"max_tokens": 5}})
    assert prompts.endswith(" is there")
    assert draft.endswith("is there; only rows that lack a result are generated")
    assert critique.endswith(": generation.critique.max_tokens is 5, was 1024")
    assert refine.endswith(": its critiques are others")


def test_a_changed_template_is_shown_by_its_line(tmp_path: Path) -> None:
    describe(tmp_path)
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("critique", "refine", "context"):
        default = Path(__file__).parents[3] / "cgd_ray" / "prompts" / "default" / f"{name}.jinja"
        (folder / f"{name}.jinja").write_text(default.read_text())
    with (folder / "refine.jinja").open("a") as file:
        file.write("\nBe brief.")
    *_, refine = explained(tmp_path, generation={"prompts": str(folder)})
    assert "generation.prompts, refine.jinja (from line " in refine


def test_a_critic_that_is_given_something_says_so(tmp_path: Path) -> None:
    describe(tmp_path)
    *_, critique, _ = explained(tmp_path, generation={"critique": {"reference": "teacher"}})
    assert "generation.critique.reference is 'teacher', was 'none'" in critique
    assert "it is given answers" in critique


def test_other_prompts_are_said_to_be_others(tmp_path: Path) -> None:
    describe(tmp_path)
    made = recipe(tmp_path)
    other = made.model_copy(update={"run": made.run.model_copy(update={"seed": 7})})
    store = Store(str(tmp_path))
    prompts, *stages = explain(store, other, open_run(other, store).stages.all)
    assert prompts.endswith(": data.seed is 7, was 0")
    assert all("is there" in line for line in stages)
