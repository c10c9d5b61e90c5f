"""Ray 2.60: the autoscaler's state, the preferred node of a placement group, and the cause in an error's text."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from ray._private.state import state
from ray._private.worker import global_worker
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import PlacementGroup, placement_group

_ANSWER_TIMEOUT_S = 30.0  # an autoscaler updates every 5 s
_CAUSED = re.compile(r"\nThe above exception was the direct cause|\nDuring handling of the above exception")
_PROCESS = re.compile(r"\(pid=(\d+), ip=([^,)\s]+)")


def node_groups() -> list[tuple[dict[str, float], int]]:
    """Return the resources and the maximum count of each kind of node of an autoscaler; below zero: unlimited."""
    config = state.get_cluster_config()  # an autoscaler need not report it: KubeRay's does not
    return [(dict(group.resources), group.max_count) for group in config.node_group_configs] if config else []


def cluster_status() -> GetClusterStatusReply:
    """Return demands and nodes as version 2 of the autoscaler reports them."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(global_worker.gcs_client.get_cluster_status(timeout_s=_ANSWER_TIMEOUT_S))
    return reply


def active_nodes() -> list[str]:
    """Return the kinds of nodes of the autoscaler's version 1, which names a node that it did not launch `node_ID`."""
    report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    return list(report.get("active_nodes", {}))


def group_near(bundle: Mapping[str, float], node: str | None, selector: dict[str, str] | None) -> PlacementGroup:
    """Create a placement group of one bundle, on this node if it has room, and on none that the selector excludes."""
    return placement_group(
        [dict(bundle)],
        "STRICT_PACK",
        _soft_target_node_id=node,
        bundle_label_selector=[selector] if selector else None,
    )


class Cause(NamedTuple):
    """The innermost cause in the text of one of Ray's errors."""

    line: str
    log: str
    """Log file of the process that raised it; empty if the text does not name the process."""


def innermost_cause(error: BaseException) -> Cause:
    """Return the innermost cause: Ray repeats a worker's traceback, then adds advice on retries."""
    cause = _CAUSED.split(str(error))[0]
    lines = [line.strip() for line in cause.splitlines() if line.strip()] or [type(error).__name__]
    process = _PROCESS.findall(cause)
    log = f" (log: worker-*-{process[-1][0]}.err in Ray's session folder on {process[-1][1]})" if process else ""
    return Cause(lines[-1] if process else lines[0], log)
