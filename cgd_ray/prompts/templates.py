"""A set of prompts: Jinja files for the teacher's requests and for the student's training inputs."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cgd_ray.errors import ConfigError

REQUIRED = ("critique", "refine", "context")
OPTIONAL = ("again", "cft")
"""Contexts of some training methods; a directory without one uses the default's."""

SETS = {"default": "default", "solve-first": "default", "explanatory": "explanatory", "stepwise": "stepwise"}
"""Sets of this package: name, and folder. Files that a folder lacks are the default's."""

_MISTAKES = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


def render(source: str, name: str, /, **values: str | None) -> str:
    """Render one template; `name` appears in the error.

    Jinja never reads the values as templates, so LaTeX braces and `{{` in model text are safe.

    Raises:
        ConfigError: the template has a syntax error or names a value that does not exist.
    """
    try:
        return _compiled(source).render(values)
    except _MISTAKES as error:
        raise ConfigError(f"template {name}: {' '.join(str(error).split())}") from error


@cache
def template_columns(source: str, name: str) -> frozenset[str]:
    """Return the values that a template names, whether it always uses them or not; `name` appears in the error.

    Jinja's own names, such as `range`, are none of them.

    Raises:
        ConfigError: the template has a syntax error.
    """
    try:
        named = jinja2.meta.find_undeclared_variables(_environment().parse(source))
    except jinja2.TemplateError as error:
        raise ConfigError(f"template {name}: {error}") from error
    return frozenset(named - _environment().globals.keys())


def _there(value: object) -> object:
    """Return the value; raise for None, which would appear as the word "None" in prompts."""
    if value is None:
        raise jinja2.UndefinedError("a value that is not always there is used without {% if ... %} around it")
    return value


@cache
def _compiled(source: str) -> jinja2.Template:
    """Compile a template once: it costs more than rendering a row, and a run has few templates and millions of rows."""
    return _environment().from_string(source)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """A sandbox: recipes and prompt folders may come from third parties, so templates access only their values."""
    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        finalize=_there,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )


@dataclass(frozen=True)
class PromptSet:
    """The text of the templates; part of the fingerprints of what they make."""

    critique_source: str
    refine_source: str
    context_source: str
    again_source: str
    cft_source: str

    def critique(self, prompt: str, draft: str, reference: str | None) -> str:
        """The teacher's first turn: x and y' (and, if shown, a reference answer) in, c out."""
        return render(self.critique_source, "critique.jinja", prompt=prompt, draft=draft, reference=reference)

    def refine(self, prompt: str, draft: str, critique: str) -> str:
        """The teacher's next turn in the same conversation (so the prefix cache holds all before it): y^ out."""
        return render(self.refine_source, "refine.jinja", prompt=prompt, draft=draft, critique=critique)

    def context(self, prompt: str, draft: str | None, critique: str | None) -> str:
        """The student's user turn in training: x, y', c in one text; the target follows as the assistant's turn."""
        return render(self.context_source, "context.jinja", prompt=prompt, draft=draft, critique=critique)

    def again(self, critique: str | None) -> str:
        """The user's turn after the draft if the context has several turns; the target follows."""
        return render(self.again_source, "again.jinja", critique=critique)

    def cft(self, prompt: str, draft: str) -> str:
        """The user turn of critique fine-tuning (arXiv 2501.17703): x and y' in one text; the critique follows."""
        return render(self.cft_source, "cft.jinja", prompt=prompt, draft=draft)


def load_prompts(where: str) -> PromptSet:
    """A set of this package by its name, or the one in a directory.

    Raises:
        ConfigError: the directory or one of its files is missing, or a template cannot be rendered.
    """
    package = resources.files("cgd_ray.prompts")
    default = package / "default"
    folder = package / SETS[where] if where in SETS else Path(where)
    texts = []
    for name in (*REQUIRED, *OPTIONAL):
        file = folder / f"{name}.jinja"
        if (name in OPTIONAL or where in SETS) and not file.is_file():
            file = default / file.name
        if not file.is_file():
            raise ConfigError(
                f"generation.prompts {where}: {name}.jinja is missing. Fix: add {', '.join(REQUIRED)}, or name a set "
                f"({', '.join(SETS)})"
            )
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"generation.prompts {where}: {name}.jinja is not text in UTF-8") from error
    prompts = PromptSet(*texts)
    # Find errors in a template here, not when the first row uses it.
    prompts.critique("x", "y'", None)
    prompts.refine("x", "y'", "c")
    prompts.context("x", "y'", "c")
    prompts.again("c")
    prompts.cft("x", "y'")
    return prompts
