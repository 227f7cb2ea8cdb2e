"""A real Ray cluster on this machine, of nodes that declare TPU chips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Ray's own would see a node's end after some 15 seconds. A node that is killed refuses its checks
#: at once; one that is short of processors has three times ten seconds.
_HEALTH = {
    "health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
    "health_check_timeout_ms": 10000, "health_check_failure_threshold": 3,
}  # fmt: skip
_MEMORY = 80 << 20


@contextmanager
def ray_nodes(count: int = 2, chips: int = 4) -> Iterator[Any]:
    """A cluster while the body runs; its processes are children of this one, and end here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    each = {"resources": {"TPU": chips}, "num_cpus": 1, "object_store_memory": _MEMORY}
    head = {**each, "include_dashboard": False, "_system_config": _HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(count - 1):
            cluster.add_node(**each)
        yield cluster
    finally:
        cluster.shutdown()
