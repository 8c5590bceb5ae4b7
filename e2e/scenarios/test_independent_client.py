"""A client that others wrote and that repeats nothing is answered through growth, a rolling change and shrinking."""

from __future__ import annotations

from e2e.site import Site
from e2e.support.aiperf import OUTPUT_TOKENS, aiperf
from e2e.support.deployments import Deployment, uid

REQUESTS = 300


def test_aiperf_through_every_wanted_change(site: Site, served: Deployment) -> None:
    before = {uid(pod) for pod in served.pods()}
    with aiperf(site.cluster, served.name, served.namespace, rate=2, requests=REQUESTS) as client:
        client.flows()
        served.patch(placement=served.with_groups(3))
        served.wait_until_serving(3)
        served.patch(pod={"env": [{"name": "E2E_CHANGE", "value": "1"}]}, placement=served.with_groups(2))
        served.wait_until_serving(2, timeout=300)
        assert client.process.poll() is None, "requests came to the end of it"
        account = client.account()
    assert not before & {uid(pod) for pod in served.pods()}
    assert len(account.requests) == REQUESTS
    assert not account.failed, account
    assert all(each.tokens >= OUTPUT_TOKENS for each in account.requests), "every token that was asked for came"
