"""The operator goes back to the first release and forward again under traffic: chart, CRDs, image.

No pod that serves is touched, whichever of the two made it, no request is lost, and each of the two does its work on
what the other left.
"""

from __future__ import annotations

from e2e.cluster import images
from e2e.site import Site
from e2e.support.berth import OLD_CHART, OLD_OPERATOR
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic


def test_operator_downgraded_and_upgraded(site: Site, served: Deployment) -> None:
    first = {uid(pod) for pod in served.pods()}
    newer = _operators(site)
    with traffic(site.cluster, served.address) as client:
        site.berth.install(images.operator(OLD_OPERATOR), OLD_CHART, settings={})  # it had fewer of them
        older = _operators(site)
        assert not newer & older
        served.patch(placement=served.with_groups(3))
        served.wait_until_serving(3)
        both = {uid(pod) for pod in served.pods()}
        assert first < both, "the older one adds to what the newer one made"
        site.berth.install()
        assert not older & _operators(site)
        served.patch(scaling={"mode": "Auto", "min": 2, "max": 7})
        served.wait_until_serving(3)
        assert {uid(pod) for pod in served.pods()} == both, "the newer one takes over what the older one made"
        served.patch(placement=served.with_groups(2))
        served.wait_until_serving(2)
        client.flows()
    assert not client.stop().failed, client.stop()
    assert {uid(pod) for pod in served.pods()} < both, "only what was not wanted any more is gone"


def _operators(site: Site) -> set[str]:
    """Names of the operator's pods, once one of them leads."""
    site.berth.wait_for_leader()
    return {pod["metadata"]["name"] for pod in site.berth.pods()}
