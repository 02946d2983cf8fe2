"""A Ray cluster of several nodes on one machine, told by lines on standard input; answers each with a line.

nodes.py CPUS[:ACCELERATORS[:speed]] ...: one for each node, the first is the head. Accelerators are logical: Ray counts
them as GPUs, nobody computes on them. ``speed`` makes it a speed node. Commands: ``kill N`` (without grace), ``add
CPUS[:ACCELERATORS[:speed]]`` (answers its id), ``fill MIB`` (holds objects in the store), ``empty``, ``end``. The first
answer is the address and the nodes' ids.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# Read by the processes that Ray starts: a lost node is noticed within two seconds instead of 13.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_health_check_initial_delay_ms="500",
    RAY_health_check_period_ms="500",
    RAY_health_check_timeout_ms="1000",
    RAY_health_check_failure_threshold="3",
)

STORE_MIB = 96


def main() -> None:
    """Serves until told to end, or until whoever tells is gone."""
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": STORE_MIB << 20}
    head, *others = [_resources(word) for word in sys.argv[1:]]
    cluster = Cluster(initialize_head=True, head_node_args={**head, **size, "include_dashboard": False})
    nodes: list[Any] = [cluster.head_node, *(cluster.add_node(wait=False, **other, **size) for other in others)]
    cluster.wait_for_nodes(60)
    held: list[Any] = []
    print(cluster.address, *(node.node_id for node in nodes), flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "kill":
            cluster.remove_node(nodes[int(rest[0])], allow_graceful=False)
        elif word == "add":
            nodes.append(cluster.add_node(wait=False, **_resources(rest[0]), **size))
            print(nodes[-1].node_id, flush=True)
            continue
        elif word == "fill":
            if not ray.is_initialized():
                ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            held += [ray.put(np.ones(8 << 20, dtype=np.uint8)) for _ in range(int(rest[0]) // 8)]
        elif word == "empty":
            held.clear()
        elif word == "end":
            break
        print("ok", flush=True)
    ray.shutdown()
    cluster.shutdown()


def _resources(word: str) -> dict[str, Any]:
    cpus, *more = word.split(":")
    resources = {"speed": 1} if "speed" in more else None
    return {"num_cpus": int(cpus), "num_gpus": int(more[0]) if more else 0, "resources": resources}


if __name__ == "__main__":
    main()
