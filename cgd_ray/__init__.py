"""Critique-Guided Distillation of language models on Ray; `cgd_ray.api` is the public API."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgd_ray.api import CgdError, Recipe, analyze, compare, load_recipe, parse_recipe, read_table, run

__all__ = ["CgdError", "Recipe", "analyze", "compare", "load_recipe", "parse_recipe", "read_table", "run"]


def __getattr__(name: str) -> object:
    """Import the public functions on first use: Ray and Arrow take a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cgd_ray import api

    return getattr(api, name)
