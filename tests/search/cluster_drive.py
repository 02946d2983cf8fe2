"""A cluster of several nodes on this machine, and a study on it: cluster_drive.py STUDY.yaml ROOT NODES_JSON [TRAINER].

``NODES_JSON`` is a list of what each node beyond the first has: arguments of ``Cluster.add_node``. The first one is the
head, which has no CPU.
"""

import json
import sys
from pathlib import Path

from search import engine, ray_adapter  # noqa: F401  (before ray, which reads its settings when it is imported)
from search.study import load


def main():
    import ray
    from ray.cluster_utils import Cluster

    study, root, nodes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for node in nodes:
        cluster.add_node(**node)
    try:
        outcome = engine.run(load(Path(study)), Path(root), address=cluster.address, trainer=sys.argv[4])
    finally:
        ray.shutdown()
        cluster.shutdown()
    sys.exit(0 if outcome.finished else 1)


if __name__ == "__main__":
    main()
