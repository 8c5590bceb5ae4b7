"""The API server is killed and comes back: nobody is evacuated for it, and Berth goes on where it was."""

from __future__ import annotations

from e2e.site import Site
from e2e.support import faults
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic


def test_api_server_restarted(site: Site, served: Deployment) -> None:
    before = {uid(pod) for pod in served.pods()}
    with traffic(site.cluster, served.address) as client:
        faults.kill_api_server(site.cluster.kubectl, site.cluster.control_plane)
        site.berth.wait_for_leader(timeout=120)
        client.flows()
        served.patch(placement=served.with_groups(3))
        served.wait_until_serving(3)
    assert not client.stop().failed, client.stop()
    assert before < {uid(pod) for pod in served.pods()}
    assert not served.failed_groups()
