"""Ray Data 2.60: operators that need no core, and actors with options of their own."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ray.data import Dataset, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

WITHOUT_CORES: dict[str, Any] = {
    "num_cpus": 0,  # the engines may hold all cores
    # Objects that a reader may be ahead, two per block. Ray Data's default of two blocks is consumed once per round of
    # its loop, which gave twenty small blocks per second.
    "_generator_backpressure_num_objects": 1024,
}
"""Options of a task that reads while engines run."""


def repartition_without_cores(blocks: Dataset, rows: int, tasks: int) -> Dataset:
    """Repartition into blocks of `rows` rows, made by `tasks` tasks at a time.

    Ray has no arguments for these. It would wait for a whole core, which the engines may never release. It would also
    not fuse the operator with the one before it, so that every block would be stored twice.
    """
    made = blocks.repartition(target_num_rows_per_block=rows)
    operator = made._logical_plan.dag
    operator.ray_remote_args.update(WITHOUT_CORES)
    object.__setattr__(operator, "compute", TaskPoolStrategy(size=tasks))
    return made


def actor_options(options: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return arguments of `map_batches` for a pool whose actors restart, each with options of its own.

    Ray has no other way, and warns at every call that this one is deprecated.
    """
    warnings.filterwarnings("ignore", message="`ray_remote_args", category=RayDeprecationWarning)
    return {"max_restarts": -1, "max_task_retries": -1, "ray_remote_args_fn": options}
