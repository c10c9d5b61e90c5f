"""What can be checked before anything is started: places, files, models, endpoints, templates."""

from dataclasses import replace
from pathlib import Path

from cgd_ray.config.data import DemoData
from cgd_ray.config.engine import TeacherOpenAI
from cgd_ray.config.recipe import Recipe
from cgd_ray.data.sources import check_source
from cgd_ray.engines.openai import check_endpoint
from cgd_ray.errors import ConfigError
from cgd_ray.generation.stages import student_identity, teacher_identity
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.runtime.session import in_job
from cgd_ray.storage.filesystem import Store, require_writable
from cgd_ray.training.formats import require_contexts


def open_store(recipe: Recipe) -> Store:
    """The store of the recipe's root, a relative one made absolute.

    Raises:
        ConfigError: a relative root in a submitted job, whose working directory is a package folder of Ray's.
    """
    root = recipe.run.root
    if "://" not in root:
        path = Path(root).expanduser()
        if not path.is_absolute():
            if in_job():
                raise ConfigError(
                    f"run.root {root} is relative, and a job's working directory is not yours: give an absolute path "
                    "that all nodes share, or s3://bucket/prefix"
                )
            path = Path.cwd() / path
        root = str(path)
    return Store(root, recipe.storage)


def existing_store(recipe: Recipe) -> Store:
    """The store of a root that holds tables already: who only looks must not make one, nor ask an endpoint.

    Raises:
        ConfigError: nothing was ever run there.
    """
    store = open_store(recipe)
    if not store.exists("tables"):
        raise ConfigError(f"run.root {store.root}: nothing was run there yet; is the path right?")
    return store


def preflight(recipe: Recipe) -> Store:
    """Check everything that needs I/O but no engine; returns the store.

    Raises:
        CgdError: the first thing that is wrong, in one line.
    """
    store = open_store(recipe)
    prompts = load_prompts(recipe.generation.prompts)
    if recipe.training.enabled:
        require_contexts(prompts, recipe.training)
    require_writable(store)
    if not isinstance(recipe.data, DemoData):
        check_source(recipe.data, recipe.storage)
    student_identity(recipe)
    teacher_identity(recipe)
    if isinstance(recipe.teacher.engine, TeacherOpenAI):
        check_endpoint(recipe.teacher.engine)
    return replace(store, patient=True)
