"""Build a runnable chain from the recipe's engine options."""

from functools import partial

from cgd_ray.config.engine import StudentEngine, TeacherEngine
from cgd_ray.config.run import StorageSection
from cgd_ray.execution.actor_pool import Chain
from cgd_ray.inference.options import ModelRef
from cgd_ray.runtime.demand import Demand
from cgd_ray.stages.stage import Stage


def build_chain(
    role: str,
    options: StudentEngine | TeacherEngine,
    model: ModelRef,
    stages: list[Stage],
    *,
    demand: Demand,
    storage: StorageSection,
    spent: float = 0.0,
) -> Chain:
    """Build a chain of stages on the engine that the recipe asks for.

    Args:
        role: student or teacher.
        options: options of the role's engine.
        model: model that the engine loads or requests.
        stages: stages in the order in which rows pass through them.
        demand: resources of one engine, see `EngineOptions.demand`.
        storage: settings for writing results.
        spent: money already paid for results of these stages.
    """
    pool = options.pool_size()
    return Chain(
        role=role,
        make_engine=partial(options.make_engine, model, storage, demand, spent),
        stages=stages,
        replicas=pool.replicas,
        min_replicas=pool.min_replicas,
        max_in_flight=pool.in_flight,
        cpus=demand.cpus,
        gpus=demand.gpus,
        accelerator_type=demand.accelerator_type,
        flush_rows=storage.flush_rows,
        flush_seconds=storage.flush_seconds,
    )
