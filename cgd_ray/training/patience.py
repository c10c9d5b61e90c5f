"""Waits for what one rank does alone: reading a table, writing a student."""

from datetime import timedelta

import torch.distributed as dist

_HOURS = 12  # terabytes to a slow store; the default group gives up after ten minutes


def patient_group() -> dist.ProcessGroup:
    """A process group of all ranks on the host, in which waiting may take hours. All ranks call it together."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(hours=_HOURS))
    return group
