"""The other pool becomes cheap: once a day was measured, the deployment moves there, and no request is lost."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import moves
from e2e.support.traffic import traffic

NOT_YET = (None, "LessThanADay", "TooFewSamples")


def test_price_falls(site: Site, namespace: str) -> None:
    with moves.hurried(site, hour=10):
        deployment = moves.movable(site, namespace)
        other = moves.other_pool(deployment)
        with traffic(site.cluster, deployment.address, **moves.REQUESTS) as client:

            def measured() -> bool:
                hold = deployment.status().get("moves", {}).get("hold") or {}
                return hold.get("reason") not in NOT_YET

            wait("a day was measured", measured, timeout=420, every=2)
            site.cluster.kubectl.patch("gpupool", other, "", {"spec": {"pricePerGPUHour": "0.10"}})
            move = moves.wait_until_ended(deployment, timeout=120)
            deployment.wait_until_serving(1)
        assert move["result"] == "Completed", move
        assert moves.pool_of(deployment) == other
        assert not client.stop().failed, client.stop()
