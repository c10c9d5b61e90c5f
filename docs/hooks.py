"""Pages that mkdocs makes of the code: every key of a recipe, from the models that validate it."""

import inspect
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cgd_ray.config.recipe import Recipe

_INTRODUCTION = """# Recipe keys

Every key of a recipe, made from the code that validates it. A recipe is YAML; `section.key=VALUE` behind a command
overrides one key. `cgd validate --schema` prints the same as a JSON schema.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page `recipe.md`."""
    files.append(File.generated(config, "recipe.md", content=recipe_page()))
    return files


def recipe_page() -> str:
    """The reference as Markdown: one heading per section, one table row per key."""
    parts = [_INTRODUCTION]
    for name, field in Recipe.model_fields.items():
        for title, section in _sections(name, field.annotation):
            parts.append(f"## {title}\n\n{inspect.getdoc(section) or ''}\n\n{_table(section)}")
            parts += [
                f"### {title}.{key}\n\n{inspect.getdoc(inner) or ''}\n\n{_table(inner)}"
                for key, inner in _inner(section)
            ]
    return "\n".join(parts)


def _sections(name: str, annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """The section, or each of those that `type` chooses among."""
    found = [one for one in (annotation, *get_args(annotation)) if _is_section(one)]
    several = len(found) > 1
    return [(f"{name} (type: {_tag(one)})" if several else name, one) for one in found]


def _inner(section: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    return [
        (title, inner)
        for key, field in section.model_fields.items()
        for title, inner in _sections(key, field.annotation)
    ]


def _table(section: type[BaseModel]) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    rows += [f"| `{key}` | {_default(field)} | {_text(field)} |" for key, field in section.model_fields.items()]
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    return "see below" if isinstance(default, BaseModel) else f"`{default!r}`".replace("|", "\\|")


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _is_section(candidate: Any) -> bool:
    return inspect.isclass(candidate) and issubclass(candidate, BaseModel)


def _tag(section: type[BaseModel]) -> str:
    field = section.model_fields.get("type")
    return ", ".join(get_args(field.annotation)) if field else section.__name__
