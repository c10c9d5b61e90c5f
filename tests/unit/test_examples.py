"""Every example has a README and a recipe that is valid; links between the repository's pages lead somewhere."""

import re
from pathlib import Path

import pytest

from cgd_ray.config.recipe import load_recipe

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (REPOSITORY / "examples").iterdir() if path.is_dir())
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "examples").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_complete(folder: Path) -> None:
    load_recipe(folder / "recipe.yaml")
    assert f"examples/{folder.name}/recipe.yaml" in (folder / "README.md").read_text() or folder.name == "kubernetes"
    assert f"({folder.name}/README.md)" in (REPOSITORY / "examples/README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Of headings, as mkdocs and GitHub make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower())).strip("-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, *sorted((REPOSITORY / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"`((?:cgd_ray|tests|benchmarks|jobs|cluster|examples|serving)/[\w./-]+\.\w+)`", text)
    assert [name for name in named if "NAME" not in name and not (REPOSITORY / name).exists()] == []
