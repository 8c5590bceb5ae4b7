"""python -m e2e up | cluster | down: what `make e2e-up`, `make e2e-cluster` and `make e2e-down` do."""

from __future__ import annotations

import sys

from e2e import site
from e2e.cluster.engine import NoEngine
from e2e.cluster.kind import Cluster
from e2e.cluster.shell import Failed
from e2e.cluster.steps import say


def main(command: str) -> int:
    try:
        if command == "down":
            site.down()
            return 0
        cluster = site.cluster_up() if command == "cluster" else site.up().cluster
    except (NoEngine, Failed) as error:
        say(str(error))
        return 1
    _tell(cluster)
    return 0


def _tell(cluster: Cluster) -> None:
    print(f"export KUBECONFIG={cluster.kubectl.kubeconfig}")
    print(f"{cluster.kubectl.program} get nodes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "up"))
