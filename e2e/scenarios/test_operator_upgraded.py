"""The operator goes back to the first release and forward again under traffic: chart, CRDs, image.

No pod that serves is touched, whichever of the two made it, no request is lost, and each of the two does its work on
what the other left.
"""

from __future__ import annotations

from e2e.cluster import images
from e2e.cluster.kubectl import condition
from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support.berth import OLD_CHART, OLD_OPERATOR
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic


def test_operator_downgraded_and_upgraded(site: Site, served: Deployment) -> None:
    first = {uid(pod) for pod in served.pods()}
    newer = _operators(site)
    with traffic(site.cluster, served.address) as client:
        site.berth.install(images.operator(OLD_OPERATOR), OLD_CHART, settings={})  # it had fewer of them
        older = _others(site, newer)
        served.patch(placement=served.with_groups(3))
        # It may wait for ever for a token that it was given during a pass: that the group serves is then the newer's.
        wait("the older one adds a group that is Ready", lambda: _ready(served) == 3, timeout=180)
        both = {uid(pod) for pod in served.pods()}
        assert first < both, "the older one adds to what the newer one made"
        site.berth.install()
        _others(site, older)
        served.wait_until_serving(3)
        served.patch(scaling={"mode": "Auto", "min": 2, "max": 7})
        served.wait_until_serving(3)
        assert {uid(pod) for pod in served.pods()} == both, "the newer one takes over what the older one made"
        served.patch(placement=served.with_groups(2))
        served.wait_until_serving(2)
        client.flows()
    assert not client.stop().failed, client.stop()
    assert {uid(pod) for pod in served.pods()} < both, "only what was not wanted any more is gone"


def _ready(deployment: Deployment) -> int:
    return sum(condition(pod, "Ready") == "True" for pod in deployment.pods())


def _operators(site: Site) -> set[str]:
    return {pod["metadata"]["name"] for pod in site.berth.pods()}


def _others(site: Site, former: set[str]) -> set[str]:
    """The operators that took the place of these, one of them leading."""
    wait("the former operators are gone", lambda: not former & _operators(site), timeout=120)
    site.berth.wait_for_leader()
    return _operators(site)
