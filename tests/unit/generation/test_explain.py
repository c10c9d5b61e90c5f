"""Which setting makes a stage new."""

from pathlib import Path
from typing import Any

from cgd_ray.generation.explain import explain
from cgd_ray.generation.stages import build_stages
from cgd_ray.storage.filesystem import Store
from tests.unit.generation.test_planning import recipe


def explained(tmp_path: Path, **changes: Any) -> list[str]:
    store = Store(str(tmp_path))
    return explain(store, build_stages(recipe(tmp_path, **changes), store).all)


def describe(tmp_path: Path) -> None:
    for stage in build_stages(recipe(tmp_path), Store(str(tmp_path))).all:
        stage.results.describe(stage.description)


def test_a_fresh_root_has_nothing_to_compare_with(tmp_path: Path) -> None:
    assert explained(tmp_path) == [
        f"{name}: the first table of this stage under this root" for name in ("draft", "critique", "refine")
    ]


def test_a_setting_is_named_where_it_is_and_its_followers_say_so(tmp_path: Path) -> None:
    describe(tmp_path)
    draft, critique, refine = explained(tmp_path, generation={"critique": {"max_tokens": 5}})
    assert draft.endswith("is there; only rows that lack a result are generated")
    assert critique.endswith(": sampling.max_tokens is 5, was 1024")
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
    assert "template (from line " in refine
