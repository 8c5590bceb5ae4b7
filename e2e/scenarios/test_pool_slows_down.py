"""A pool becomes slow: the deployment misses its objective there, moves to the other pool, and no request is lost."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults, moves
from e2e.support.traffic import traffic


def test_pool_slows_down(site: Site, namespace: str) -> None:
    with moves.hurried(site):
        deployment = moves.movable(site, namespace)
        first, second = moves.pool_of(deployment), moves.other_pool(deployment)
        with traffic(site.cluster, deployment.address, **moves.REQUESTS) as client:
            wait("step times are learned", lambda: deployment.status().get("calibration"), timeout=120)
            for pod in deployment.leaders():
                faults.slow_engine(site.cluster.kubectl, pod, moves.SLOW)
            move = moves.wait_until_ended(deployment)
            deployment.wait_until_serving(1)
            client.flows()
        assert move["result"] == "Completed", move
        assert f"pool {first} take" in move["reason"], move
        assert moves.pool_of(deployment) == second
        assert not client.stop().failed, client.stop()
