"""The node of the new group loses its power in the middle of a move: no request is lost, and the move ends."""

from __future__ import annotations

from berth import labels
from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults, moves
from e2e.support.deployments import node_of, uid
from e2e.support.traffic import traffic


def test_node_fails_during_move(site: Site, namespace: str) -> None:
    with moves.hurried(site):
        deployment = moves.movable(site, namespace)
        first, second = moves.pool_of(deployment), moves.other_pool(deployment)
        (old,) = deployment.leaders()
        with traffic(site.cluster, deployment.address, **moves.REQUESTS) as client:
            request = {labels.REQUEST: f"move {second} bf16 tp1 x1"}
            metadata = {"metadata": {"annotations": request}}
            site.cluster.kubectl.patch("llmdeployment", deployment.name, namespace, metadata)

            def on_its_node() -> str:
                return next((node_of(pod) for pod in deployment.leaders(serving=False) if uid(pod) != uid(old)), "")

            wait("the new group has a node", on_its_node, timeout=60, every=0.1)
            lost = on_its_node()
            faults.stop_node(lost)
            move = moves.wait_until_ended(deployment)
            faults.start_node(lost)
            deployment.wait_until_serving(1)
            client.flows()
        assert not client.stop().failed, client.stop()
        stayed = uid(old) in [uid(pod) for pod in deployment.leaders()]
        assert (moves.pool_of(deployment) == first) == stayed == (move["result"] != "Completed"), move
