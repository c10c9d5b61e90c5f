"""From a recipe to a run: checked and on Ray, or only looked at."""

import contextlib
import os
from collections.abc import Iterator

import structlog

from cgd_ray.config.recipe import Recipe
from cgd_ray.errors import CgdError
from cgd_ray.pipeline.node_check import check_nodes
from cgd_ray.pipeline.preflight import existing_store, preflight
from cgd_ray.runtime.session import ray_session
from cgd_ray.stages.resolved import ResolvedRun, resolve

log = structlog.get_logger(__name__)


@contextlib.contextmanager
def connected_run(recipe: Recipe) -> Iterator[ResolvedRun]:
    """A checked recipe, resolved on the Ray cluster that the block then may use.

    Raises:
        CgdError: the first thing that is wrong, in one line.
    """
    store = preflight(recipe)
    with ray_session():
        check_nodes(store)
        yield resolve(recipe, store)


@contextlib.contextmanager
def existing_run(recipe: Recipe) -> Iterator[ResolvedRun]:
    """A run to be looked at.

    Tables on S3 are read by all nodes of the cluster that `RAY_ADDRESS` names; none is started for that.

    Raises:
        CgdError: nothing was run there, or a model that the recipe names is gone.
    """
    store, address = existing_store(recipe), os.environ.get("RAY_ADDRESS", "")
    with contextlib.ExitStack() as stack:
        if store.is_s3 and address and "://" not in address:  # else it is where jobs are submitted
            try:
                stack.enter_context(ray_session())
            except CgdError as error:
                log.warning(f"this machine alone reads: {error}")
        yield resolve(recipe, store)
