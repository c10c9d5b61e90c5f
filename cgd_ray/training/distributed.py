"""Coordinate the ranks: connect them, wait for work of a single rank, and stop all if one has to."""

import contextlib
import ipaddress
import os
import socket
from datetime import timedelta
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist

from cgd_ray.training.job import RankJob, RefusedError

Value = TypeVar("Value")
_ELSEWHERE = "8.8.8.8"  # Ray finds its nodes' addresses the same way; nothing is sent to it
_HOURS = 12  # for terabytes to a slow store; NCCL's default group times out after ten minutes


def join_ranks(job: RankJob) -> torch.device:
    """Return this rank's device; create the default process group if none exists. All ranks call it together."""
    if job.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    # On GPU ranks too, for optimiser states on the host: torchrun would leave one thread for them.
    torch.set_num_threads(job.threads)
    if not dist.is_initialized():
        bind_gloo(_own_address(os.environ["MASTER_ADDR"]))
        dist.init_process_group("nccl" if job.device == "cuda" else "gloo")
    return device


def bind_gloo(address: str | None) -> None:
    """Bind gloo to the interface with this address, unless the environment sets GLOO_SOCKET_IFNAME.

    Otherwise gloo binds to the address of the host's own name: on Debian 127.0.1.1, which no other machine reaches.
    NCCL selects the interface itself, and uses loopback last.
    """
    for name, found in psutil.net_if_addrs().items():
        if address in {each.address.partition("%")[0] for each in found}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _own_address(master: str) -> str | None:
    """Return this machine's address on the route to another one; None if others can reach none of its addresses."""
    for other in (master, _ELSEWHERE):  # on the master itself, its name may resolve to loopback
        with contextlib.suppress(OSError):
            family, kind, _, _, place = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(place)
                address = str(probe.getsockname()[0])
            if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                return address
    return None


def host_group() -> dist.ProcessGroup:
    """Return a process group of all ranks on the host, with a timeout of hours. All ranks call it together."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(hours=_HOURS))
    return group


def broadcast_from_rank0(value: Value, group: dist.ProcessGroup) -> Value:
    """Return rank 0's value. All ranks call it together, with a group of `host_group`."""
    values = [value]
    dist.broadcast_object_list(values, group=group, src=0)
    return values[0]


def raise_on_all_ranks(refusal: str | None, group: dist.ProcessGroup) -> None:
    """Stop all ranks if one of them has to: the others would wait for it. All ranks call it together.

    Args:
        refusal: why this rank cannot continue; None if it can.
        group: from `host_group`.

    Raises:
        RefusedError: with the reason of the first rank that has one.
    """
    refusals: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(refusals, refusal, group=group)
    for said in refusals:
        if said is not None:
            raise RefusedError(said)
