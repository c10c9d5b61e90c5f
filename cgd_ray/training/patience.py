"""Waits for what one rank does alone (reading a table, writing a student), and ends where one of them cannot go on."""

from datetime import timedelta

import torch.distributed as dist

from cgd_ray.training.job import RefusedError

_HOURS = 12  # terabytes to a slow store; the default group gives up after ten minutes


def patient_group() -> dist.ProcessGroup:
    """A process group of all ranks on the host, in which waiting may take hours. All ranks call it together."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(hours=_HOURS))
    return group


def refuse_together(refusal: str | None, group: dist.ProcessGroup) -> None:
    """Stop all ranks where one of them has to: the others would wait for it. All ranks call it together.

    Args:
        refusal: why this rank cannot go on, None where it can.
        group: of `patient_group`.

    Raises:
        RefusedError: what the first of them says.
    """
    refusals: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(refusals, refusal, group=group)
    for said in refusals:
        if said is not None:
            raise RefusedError(said)
