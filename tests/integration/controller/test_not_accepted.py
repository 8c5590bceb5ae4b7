"""What only other objects show is said in Accepted and in the one line, costs nothing and disturbs nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from berth.local.controlplane import ControlPlane
from berth.local.kwok import Kwok
from tests.integration.conftest import connections_closed
from tests.integration.controller.conftest import Site, own_site
from tests.support.berth import RunningBerth, running_berth
from tests.support.cluster import Cluster, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

Manifest = dict[str, Any]


@dataclass
class Scene:
    """A neighbour that serves all the time, and pools of every kind."""

    site: Site
    berth: RunningBerth
    pools: dict[str, str]

    def deployment(self, name: str, pool: str = "h100", **shape: Any) -> Manifest:
        return self.site.deployment(self.pools.get(pool, pool), name, **shape)

    async def refused(self, name: str) -> Manifest:
        """The deployment, once it is not accepted; nothing was made for it, and the neighbour is as before."""
        found = await self.site.until("Accepted", "False", name=name)
        assert await self.site.pods(name) == await self.site.groups(name) == []
        assert len(await self.site.serving("neighbour")) == 2
        status = found["status"]
        conditions = {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}
        assert conditions["Ready"] == conditions["Placed"] == ("False", "NotAccepted")
        assert conditions["Stalled"] == ("True", "NotAccepted")
        assert conditions["Progressing"][0] == conditions["Reconciling"][0] == "False"
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(control_plane: ControlPlane, kwok: Kwok) -> AsyncIterator[Scene]:
    async with (
        Cluster(control_plane.kubeconfig) as cluster,
        own_site(cluster) as site,
        running_berth(control_plane.kubeconfig, site.namespace) as berth,
    ):
        pools = {
            "h100": await site.pool(),
            "a100": await site.pool("A100-SXM-40", nodes=1),
            "closed": await site.pool(nodes=0, allowedNamespaces={"names": ["other-team"]}),
            "strange": await site.pool("TPU-9000", nodes=0),
            "small": await site.pool(nodes=1, gpuBudget=4),
        }
        await site.create(site.deployment(pools["h100"], "neighbour"))
        await site.settled("neighbour")
        yield Scene(site, berth, pools)
    await connections_closed()


def precision(found: Manifest, name: str, backend: str = "pytorch") -> Manifest:
    variants = found["spec"]["model"]["variants"]
    variants[0] |= {"precision": name}
    found["spec"]["engine"] = {"backend": backend}
    return found


def with_spec(found: Manifest, **spec: Any) -> Manifest:
    found["spec"] |= spec
    return found


FIELD = "spec.placement.fixed.allocations[0]"
"""Stands as FIELD in the messages; "..." stands for more of the same."""
CASES: dict[str, tuple[Callable[[Scene, str], Manifest], str, str]] = {
    "a pool that does not exist": (
        lambda scene, name: scene.deployment(name, "nowhere"),
        "UnknownPool",
        "FIELD.pool: pool nowhere does not exist: create the GPUPool or use one of: ...",
    ),
    "a pool of other namespaces": (
        lambda scene, name: scene.deployment(name, "closed"),
        "PoolNotAllowed",
        "FIELD.pool: pool {closed} is not open to namespace {namespace}: add it to "
        "allowedNamespaces.names of the GPUPool or use another pool",
    ),
    "a pool with GPUs nobody knows": (
        lambda scene, name: scene.deployment(name, "strange"),
        "UnknownGPU",
        "GPUPool {strange} spec.gpu: gpu 'TPU-9000' is not known: use one of H100-SXM-80, ...",
    ),
    "a precision the GPU lacks": (
        lambda scene, name: precision(scene.deployment(name, "a100"), "fp8"),
        "UnsupportedPrecision",
        "fp8 cannot run on pool {a100} (A100-SXM-40): A100 has no FP8: use bf16 or int4-awq",
    ),
    "tensor parallel beyond heads": (
        lambda scene, name: scene.deployment(name, tp=3),
        "InvalidParallelism",
        "FIELD.tensorParallel: 3 does not divide the 32 attention heads of llama-3.1-8b: use one of 1, 2, 4, 8",
    ),
    "more stages than layers": (
        lambda scene, name: scene.deployment(name, tp=1, pp=33),
        "InvalidParallelism",
        "FIELD.pipelineParallel: 33 stages for 32 layers of llama-3.1-8b: use at most 32",
    ),
    "tensor parallel beyond a node": (
        lambda scene, name: scene.deployment(name, tp=16),
        "InvalidParallelism",
        "FIELD.tensorParallel: 16 GPUs do not fit a node of pool {h100} (8 GPUs): use at most 8, and "
        "pipelineParallel across nodes",
    ),
    "a model nobody knows": (
        lambda scene, name: with_spec(
            scene.deployment(name),
            model={**scene.deployment(name)["spec"]["model"], "name": "grandmother-1b"},
        ),
        "UnknownModel",
        "spec.model: model 'grandmother-1b' is not in the catalogue: see `berth model list`, or give architecture",
    ),
    "a claim that does not exist": (
        lambda scene, name: with_spec(
            scene.deployment(name),
            engine={"backend": "pytorch"},
            model={
                "name": "llama-3.1-8b-instruct",
                "variants": [
                    {
                        "name": "bf16",
                        "precision": "bf16",
                        "source": {"persistentVolumeClaim": {"claimName": "weights", "path": "llama"}},
                    }
                ],
            },
        ),
        "ClaimNotFound",
        "spec.model.variants: PersistentVolumeClaim weights does not exist in namespace {namespace}: "
        "create it or correct claimName",
    ),
    "more GPUs than its limit": (
        lambda scene, name: with_spec(scene.deployment(name), objectives={"limits": {"gpus": 3}}),
        "LimitExceeded",
        "FIELD: 2 groups x 2 GPUs are above spec.objectives.limits.gpus 3: raise the limit or use fewer groups",
    ),
    "more GPUs than the pool's budget": (
        lambda scene, name: scene.deployment(name, "small", groups=3),
        "LimitExceeded",
        "FIELD: 3 groups x 2 GPUs are above the gpuBudget 4 of pool {small}: raise the budget or use fewer groups",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_it_is_said_and_nothing_is_made(case: str, scene: Scene) -> None:
    make, reason, words = CASES[case]
    name = f"case-{list(CASES).index(case)}"
    await scene.site.cluster.create(make(scene, name))
    found = await scene.refused(name)
    accepted = await scene.site.condition("Accepted", name)
    expected = words.replace("FIELD", FIELD).format(namespace=scene.site.namespace, **scene.pools)
    beginning, open_end, _ = expected.partition("...")
    assert accepted["message"].startswith(beginning)
    assert open_end or accepted["message"] == expected
    assert accepted["reason"] == reason
    assert found["status"]["summary"]["message"] == f"Not accepted: {accepted['message']}"
    groups = found["spec"]["placement"]["fixed"]["allocations"][0]["groups"]
    assert found["status"]["summary"]["ready"] == f"0/{groups}"


async def test_pools_of_other_namespaces_are_not_offered(scene: Scene) -> None:
    await scene.site.cluster.create(scene.deployment("curious", "nowhere"))
    await scene.refused("curious")
    message = (await scene.site.condition("Accepted", "curious"))["message"]
    assert scene.pools["h100"] in message
    assert scene.pools["closed"] not in message


async def test_once_the_pool_exists_the_deployment_goes_on_by_itself(scene: Scene) -> None:
    pool = {**await scene.site.cluster.get("gpupools", scene.pools["closed"])}
    await scene.site.cluster.create(scene.deployment("patient", f"{scene.pools['closed']}-new"))
    await scene.refused("patient")
    metadata = {"name": f"{scene.pools['closed']}-new"}
    selector = {"tests.berth.dev/pool": scene.pools["small"]}
    spec = {**pool["spec"], "allowedNamespaces": {}, "nodeSelector": selector}
    await scene.site.cluster.create({**pool, "metadata": metadata, "spec": spec, "status": {}})
    await scene.site.until("Accepted", name="patient")
    await scene.site.cluster.delete("llmdeployments", "patient", scene.site.namespace)
    await scene.site.cluster.delete("gpupools", metadata["name"])


async def test_a_service_of_somebody_else_is_left_alone(scene: Scene) -> None:
    site = scene.site
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken", "namespace": site.namespace},
        "spec": {"selector": {"app": "mine"}, "ports": [{"port": 80}]},
    }
    before = await site.cluster.create(service)
    await site.cluster.create(scene.deployment("taken"))
    found = await scene.refused("taken")
    accepted = await site.condition("Accepted", "taken")
    words = "Service taken exists and belongs to someone else"
    assert (accepted["reason"], accepted["message"]) == ("NameTaken", f"{words}: remove it or rename the deployment")
    assert found["status"]["summary"]["message"] == f"Not accepted: {accepted['message']}"
    after = await site.cluster.get("services", "taken", site.namespace)
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_of_two_that_want_one_name_the_first_keeps_it(scene: Scene) -> None:
    """Service `twin-headless` is the headless twin of `twin` and the Service of `twin-headless`."""
    site = scene.site
    await site.cluster.create(scene.deployment("twin", groups=1))
    await site.settled("twin")
    await site.cluster.create(scene.deployment("twin-headless", groups=1))
    await scene.refused("twin-headless")
    accepted = await site.condition("Accepted", "twin-headless")
    assert accepted["message"].startswith("Service twin-headless exists and belongs to someone else")
    assert len(await site.serving("twin")) == 1
    service = await site.cluster.get("services", "twin-headless", site.namespace)
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["ownerReferences"][0]["name"] == "twin"


async def test_nothing_is_placed_in_pools_that_overlap(scene: Scene) -> None:
    site = scene.site
    pool = await site.pool(nodes=1)
    manifest = await site.cluster.get("gpupools", pool)
    twin = {**manifest, "metadata": {"name": f"{pool}-twin"}, "status": {}}
    await site.cluster.create(twin)
    await site.cluster.create(site.deployment(pool, "undecided", groups=1))
    message = f"pool {pool}-twin also has {pool}-0: nothing is planned in either until a nodeSelector is narrowed"

    async def said() -> bool:
        placed = await site.condition("Placed", "undecided")
        assert (placed.get("status"), placed.get("message")) == ("False", message)
        return True

    await eventually(said)
    assert await site.groups("undecided") == []
    found = await site.get("undecided")
    assert found["status"]["summary"]["message"] == f"Waiting for GPUs: {message}"
    await site.cluster.delete("gpupools", f"{pool}-twin")
    await site.settled("undecided")


async def test_a_container_that_cannot_start_shows_in_degraded_with_the_kubelets_words(scene: Scene) -> None:
    """As when a Secret is missing: Berth never reads Secrets, the kubelet says so."""
    site = scene.site
    scene.berth.leaders.silent.add("*")
    await site.cluster.create(scene.deployment("no-token", groups=1))

    async def pod_runs() -> str:
        found = [pod for pod in await site.pods("no-token") if pod["status"]["phase"] == "Running"]
        return str(found[0]["metadata"]["name"]) if found else ""

    name = await eventually(pod_runs)
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}
    container = {"name": "triton", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    status = {
        "phase": "Running",
        "containerStatuses": [{**container, "state": {"waiting": waiting}}],
        "conditions": [{"type": "Ready", "status": "False"}],
    }
    await site.cluster.patch("pods", name, site.namespace, {"status": status}, subresource="status")
    found = await site.until("Degraded", name="no-token")
    degraded = await site.condition("Degraded", "no-token")
    words = f'g0: {name}: CreateContainerConfigError: secret "hf" not found'
    assert (degraded["reason"], degraded["message"]) == ("ContainerWaiting", words)
    assert found["status"]["summary"]["message"] == words
    scene.berth.leaders.silent.clear()
