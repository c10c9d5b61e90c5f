"""Prompt templates: model text goes in as it is, mistakes are named."""

from pathlib import Path

import pytest

from cgd_ray.errors import ConfigError
from cgd_ray.prompts.templates import SETS, load_prompts, render, template_columns

LATEX = r"\frac{a}{b} {{ x }} {% if %} <|im_end|>"


def test_braces_in_model_text_are_not_templates() -> None:
    prompts = load_prompts("default")
    assert LATEX in prompts.critique(LATEX, "draft", None)
    assert LATEX in prompts.context("x", LATEX, LATEX)


def test_the_critique_prompt_shows_a_reference_only_if_given() -> None:
    prompts = load_prompts("default")
    assert "GOLD" in prompts.critique("x", "y", "GOLD")
    assert "None" not in prompts.critique("x", "y", None)


def test_the_context_has_prompt_draft_and_critique() -> None:
    text = load_prompts("default").context("PROMPT", "DRAFT", "CRITIQUE")
    assert text.index("PROMPT") < text.index("DRAFT") < text.index("CRITIQUE")


def test_a_directory_with_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "critique.jinja").write_text("x")
    with pytest.raises(ConfigError, match=r"refine\.jinja is missing"):
        load_prompts(str(tmp_path))


def test_an_unknown_name_in_a_template_is_named() -> None:
    with pytest.raises(ConfigError, match=r"template t: 'quetsion' is undefined"):
        render("{{ quetsion }}", "t", question="x")


def test_a_value_that_is_not_there_is_never_the_word_none() -> None:
    with pytest.raises(ConfigError, match=r"template t: a value that is not always there is used without \{% if"):
        render("{{ critique }}", "t", critique=None)


def test_a_directory_without_optional_files_has_the_defaults(tmp_path: Path) -> None:
    for name in ("critique", "refine", "context"):
        (tmp_path / f"{name}.jinja").write_text(name)
    own, default = load_prompts(str(tmp_path)), load_prompts("default")
    assert own.context("x", "y", "c") == "context"
    assert own.cft("x", "y") == default.cft("x", "y")
    assert own.again("c") == default.again("c")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ prompt.__class__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "{{ prompt + 1 }}",
        "{{ 1 / 0 }}",
        "{{ prompt[{}] }}",
    ],
)
def test_a_template_reaches_nothing_but_its_values(source: str) -> None:
    with pytest.raises(ConfigError, match=r"^template critique\.jinja: ") as caught:
        render(source, "critique.jinja", prompt="x")
    assert "\n" not in str(caught.value)


def test_the_columns_of_a_template_are_known() -> None:
    source = "{{ question }}{% if hint is defined and hint %}{{ hint | upper }}{% endif %}{% set own = 1 %}{{ own }}"
    assert template_columns(source, "x") == {"question", "hint"}


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_complete_and_ends_in_a_verdict(name: str) -> None:
    prompts = load_prompts(name)
    asked = prompts.critique("What is 2 + 2?", "It is 5.", None)
    assert "What is 2 + 2?" in asked
    assert "It is 5." in asked
    assert "Verdict: right" in asked.splitlines()[-1]
    assert "Correct answer" not in asked
    assert "### Correct answer\n4" in prompts.critique("What is 2 + 2?", "It is 5.", "4")
    assert prompts.refine_source == load_prompts("default").refine_source
    assert (prompts.critique_source == load_prompts("default").critique_source) == (name in ("default", "solve-first"))


def test_only_solve_first_asks_for_a_solution() -> None:
    wants = {name: "solve the question yourself" in load_prompts(name).critique("x", "y", None) for name in SETS}
    assert wants == {"default": True, "solve-first": True, "explanatory": False, "stepwise": False}
