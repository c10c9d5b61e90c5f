"""Open the run of a recipe: checked and connected to Ray, or only to read it."""

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
    """Check a recipe, connect to Ray while the block runs, and yield the resolved run.

    Raises:
        CgdError: the first error found, in one line.
    """
    store = preflight(recipe)
    with ray_session():
        check_nodes(store)
        yield resolve(recipe, store)


@contextlib.contextmanager
def existing_run(recipe: Recipe) -> Iterator[ResolvedRun]:
    """Yield a run to read.

    Tables on S3 are read by all nodes of the cluster in `RAY_ADDRESS`; no cluster is started for it.

    Raises:
        CgdError: no run exists there, or a model that the recipe names no longer exists.
    """
    store, address = existing_store(recipe), os.environ.get("RAY_ADDRESS", "")
    with contextlib.ExitStack() as stack:
        if store.is_s3 and address and "://" not in address:  # with ://, it is an address for submitting jobs
            try:
                stack.enter_context(ray_session())
            except CgdError as error:
                log.warning(f"this machine alone reads: {error}")
        yield resolve(recipe, store)
