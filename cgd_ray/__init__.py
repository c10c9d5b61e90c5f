"""Critique-Guided Distillation of language models on Ray; see `cgd_ray.api` for what is public."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgd_ray.api import CgdError, Recipe, compare, load_recipe, parse_recipe, read_table, run

__all__ = ["CgdError", "Recipe", "compare", "load_recipe", "parse_recipe", "read_table", "run"]


def __getattr__(name: str) -> object:
    """The public functions, imported when they are asked for: Ray and Arrow take a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cgd_ray import api

    return getattr(api, name)
