"""A change of what runs in the pods: new groups first, no request is lost, never fewer groups than promised."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic


def test_rolling_change(site: Site, served: Deployment) -> None:
    before = {uid(pod) for pod in served.leaders()}
    fewest = 2
    with traffic(site.cluster, served.address) as client:
        served.patch(pod={"env": [{"name": "E2E_CHANGE", "value": "1"}]})

        def changed() -> bool:
            nonlocal fewest
            fewest = min(fewest, len(served.leaders()))
            return served.serves(2) and not before & {uid(pod) for pod in served.pods()}

        wait("all groups are new", changed, timeout=300, every=0.2)
        client.flows()
    account = client.stop()
    assert not account.failed, account
    assert fewest == 2, "maxUnavailable is 0"
    assert not served.failed_groups(), "nothing failed: it was meant"
