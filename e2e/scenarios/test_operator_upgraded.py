"""The operator is upgraded and taken back under traffic: no pod that serves is touched, and no request is lost."""

from __future__ import annotations

from e2e.cluster import images
from e2e.site import Site
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic


def test_operator_upgraded(site: Site, served: Deployment) -> None:
    before = {uid(pod) for pod in served.pods()}
    old = {pod["metadata"]["name"] for pod in site.berth.pods()}
    with traffic(site.cluster, served.address) as client:
        site.berth.install(images.operator(release="next"))
        site.berth.wait_for_leader()
        assert not old & {pod["metadata"]["name"] for pod in site.berth.pods()}
        served.patch(placement=served.with_groups(3))
        served.wait_until_serving(3)
        site.berth.helm("rollback", "berth", "--wait", "--timeout=4m")
        site.berth.wait_for_leader()
        served.patch(placement=served.with_groups(2))
        served.wait_until_serving(2)
    assert not client.stop().failed, client.stop()
    assert before == {uid(pod) for pod in served.pods()}, "the first two groups were never touched"
