"""The chart's roles are what Berth uses: nothing is refused to it, and nothing is granted that it does not use.

Berth runs with a token of the chart's service account, bound to the chart's rendered roles on the real authorizer, and
every one of its requests passes a proxy that writes them down.
"""

from __future__ import annotations

import gc
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from berth.kube.events import EventRecorder
from berth.local.controlplane import ControlPlane
from tests.integration.chart.helm import Helm, Manifest
from tests.integration.controller.conftest import Site
from tests.integration.placement.test_auto import automatic, pool
from tests.support.berth import running_berth
from tests.support.cluster import Cluster, eventually
from tests.support.fault_proxy import Call, EditEvents, FaultProxy, LoseReply

Permission = tuple[str, str, str]
RBAC = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
ACCOUNT = "berth"
WATCH_SECONDS = 5.0


@asynccontextmanager
async def installed(helm: Helm, cluster: Cluster, **values: Any) -> AsyncIterator[tuple[str, list[Manifest]]]:
    """The namespace of an installation of which only identity and roles are real, and its roles."""
    async with cluster.namespace(f"system-{secrets.token_hex(3)}") as home:
        rendered = await helm.template("--namespace", home, values=values)
        roles = [each for each in rendered if each["kind"] in RBAC]
        for each in rendered:
            if each["kind"] in (*RBAC, "ServiceAccount"):
                await cluster.apply(each)
        yield home, roles
        for each in roles:
            await cluster.delete(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace"))


def granted(roles: Iterable[Manifest]) -> set[Permission]:
    """What the operator's roles allow, those for people left out."""
    bound = {
        (each["roleRef"]["kind"], each["roleRef"]["name"])
        for each in roles
        if each["kind"].endswith("Binding") and each["subjects"][0]["kind"] == "ServiceAccount"
    }
    return {
        (verb, group, resource)
        for role in roles
        if (role["kind"], role["metadata"]["name"]) in bound
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def refused(calls: Iterable[Call], site: Site) -> set[Permission]:
    """Elsewhere the namespaces of other tests are on their way out, and nobody may create anything in them."""
    leaving = re.compile("test-[0-9a-f]{8}")
    return {
        call.permission
        for call in calls
        if call.status == 403 and (call.namespace == site.namespace or not leaving.fullmatch(call.namespace))
    }


@asynccontextmanager
async def berth_of(
    home: str, namespace: str, control_plane: ControlPlane, cluster: Cluster, folder: Path, **more: Any
) -> AsyncIterator[FaultProxy]:
    """Berth as the installation's service account; the proxy that sees all it does."""
    token = await cluster.service_account_token(ACCOUNT, home)
    async with FaultProxy(control_plane) as proxy:
        path = folder / "berth.kubeconfig"
        control_plane.write_kubeconfig(path, token=token, server=proxy.url)
        settings = {"lease_namespace": home, "lease_name": ACCOUNT, "watch": WATCH_SECONDS, **more}
        async with running_berth(path, namespace, **settings):
            yield proxy


async def lose_the_reply_to_a_reservation(proxy: FaultProxy) -> None:
    """Berth learns neither from the reply nor from its watch that a ReplicaGroup was created."""
    seen = len(proxy.calls)
    blind = proxy.inject(EditEvents(lambda event: ()), verb="watch", resource="replicagroups")

    async def blinded() -> bool:
        return any(call.permission == ("watch", "berth.dev", "replicagroups") for call in proxy.calls[seen:])

    await eventually(blinded)
    proxy.inject(LoseReply(), verb="create", resource="replicagroups", times=1)
    proxy.withdraw(blind)


async def drift(site: Site) -> None:
    """Somebody changes what belongs to Berth, which repairs it."""
    for kind in ("services", "configmaps", "poddisruptionbudgets"):
        for each in await site.cluster.list(kind, site.namespace, labels="berth.dev/deployment"):
            label = {"metadata": {"labels": {"berth.dev/deployment": "llama", "app.kubernetes.io/managed-by": "berth"}}}
            changed = {"metadata": {"labels": {"berth.dev/deployment": "somebody-elses"}}}
            name = each["metadata"]["name"]
            await site.cluster.patch(kind, name, site.namespace, changed)

            async def repaired(kind: str = kind, name: str = name, wanted: dict[str, Any] = label) -> bool:
                found = (await site.cluster.get(kind, name, site.namespace))["metadata"]["labels"]
                return found.items() >= wanted["metadata"]["labels"].items()

            await eventually(repaired)


async def live(site: Site, proxy: FaultProxy) -> None:
    """Every kind of thing that happens to a deployment."""
    pool = await site.pool(nodes=4)
    claim = {"persistentVolumeClaim": {"claimName": "not-there", "path": "llama"}}
    waiting = site.deployment(pool, "waiting", groups=1)
    waiting["spec"]["model"]["variants"][0]["source"] = claim
    waiting["spec"]["engine"] = {"backend": "pytorch"}
    await site.cluster.create(waiting)
    await site.until("Accepted", "False", name="waiting")

    await site.cluster.create(site.deployment(pool, tp=8, pp=2, groups=1))
    await site.settled()
    await drift(site)

    await lose_the_reply_to_a_reservation(proxy)
    await site.patch({"spec": site.deployment(pool, tp=4, groups=2)["spec"]})
    await site.settled()

    victim = (await site.pods())[0]["metadata"]
    await site.cluster.delete("pods", victim["name"], site.namespace, grace=0)

    async def replaced() -> bool:
        groups = (await site.get())["status"]["groups"]
        assert sorted(each["incarnation"] for each in groups if each["state"] == "Serving")[-1] > 1, groups
        return True

    await eventually(replaced)
    await site.settled()
    await site.patch({"spec": site.deployment(pool, tp=4, groups=1)["spec"]})
    await site.settled()

    for _ in range(2):  # the second time the same is said, it is counted
        await site.patch({"spec": site.deployment("nowhere", tp=4, groups=1)["spec"]})
        await site.until("Accepted", "False")
        await site.patch({"spec": site.deployment(pool, tp=4, groups=1)["spec"]})
        await site.until("Accepted")

    async def counted() -> bool:
        return ("patch", "events.k8s.io", "events") in proxy.permissions()

    await eventually(counted)
    await site.cluster.delete("llmdeployments", "llama", site.namespace)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kopf: loop ends early
async def test_berth_uses_what_the_chart_grants_and_nothing_is_refused(
    kubectl: Helm, control_plane: ControlPlane, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berth.app.EventRecorder", partial(EventRecorder, flush=0.5))  # not 30 s: counts of events
    async with (
        installed(kubectl, site.cluster) as (home, roles),
        berth_of(home, "", control_plane, site.cluster, tmp_path) as proxy,
    ):
        await live(site, proxy)
        assert refused(proxy.calls, site) == set()
        used = proxy.permissions()
        assert used - granted(roles) == set(), "used without a grant: by what right?"
        assert granted(roles) - used == set(), "granted and never used: take it away, or use it here"
    gc.collect()  # what kopf left behind is complained of here and not in another test


async def placed_and_moved(site: Site) -> None:
    """placement.mode Auto, a move that a person asks for, and the way back."""
    here = await pool(site, "A100-SXM-40", pricePerGPUHour="0.90")
    there = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
    await site.cluster.create(automatic(site, pools=(here, there), replicaGroups={"minAvailable": 2}))
    await site.settled()
    for request in (f"move {there} bf16 tp1 x2", "rollback"):
        await site.patch({"metadata": {"annotations": {"berth.dev/request": request}}})
        await eventually(partial(_answered, site, request), timeout=120)


async def _answered(site: Site, request: str) -> bool:
    """What became of the move is not asked here: by the time it is to be taken back it may have ended by itself."""
    reply = (await site.get())["status"].get("request") or {}
    assert (reply.get("text"), reply.get("result")) in ((request, "Done"), (request, "Refused")), reply
    return True


async def led_off_a_node(site: Site) -> None:
    """A cordon: the replacement serves first, then the group leaves."""
    await site.cluster.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2))
    await site.settled()
    node = (await site.pods())[0]["spec"]["nodeName"]
    await site.cluster.patch("nodes", node, None, {"spec": {"unschedulable": True}})

    async def left() -> bool:
        return all(pod["spec"].get("nodeName") != node for pod in await site.pods())

    await eventually(left, timeout=120)
    await site.settled()


async def counted_by_people(site: Site) -> None:
    """scaling.mode Manual through /scale's field, bounds of a namespace, nothing to be placed beyond them."""
    manual = {"scaling": {"mode": "Manual"}, "replicas": 1}
    await site.create(site.deployment(await site.pool(), tp=2), **manual)
    await site.settled()
    await site.patch({"spec": {"replicas": 3}})

    async def bounded() -> bool:
        placed = await site.condition("Placed")
        assert placed.get("reason") == "NamespaceLimitReached", placed
        return True

    await eventually(bounded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("feature", "settings"),
    [(placed_and_moved, {}), (led_off_a_node, {}), (counted_by_people, {"namespace_gpus": 4})],
    ids=["auto-and-moves", "cordon", "manual-and-bounds"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kopf: loop ends early
async def test_an_optional_feature_needs_no_right_that_is_not_there(
    feature: Callable[[Site], Awaitable[None]],
    settings: dict[str, Any],
    kubectl: Helm,
    control_plane: ControlPlane,
    site: Site,
    tmp_path: Path,
) -> None:
    async with (
        installed(kubectl, site.cluster) as (home, roles),
        berth_of(home, "", control_plane, site.cluster, tmp_path, **settings) as proxy,
    ):
        await feature(site)
        assert refused(proxy.calls, site) == set()
        assert proxy.permissions() <= granted(roles)
        await site.cluster.delete("llmdeployments", "llama", site.namespace)
    gc.collect()  # what kopf left behind is complained of here and not in another test


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kopf: loop ends early
async def test_one_namespace_is_served_with_a_role_in_it(
    kubectl: Helm, control_plane: ControlPlane, site: Site, tmp_path: Path
) -> None:
    """Its stated limit: a pool needs a GPU budget, since nobody may see what others run on its nodes."""
    async with (
        installed(kubectl, site.cluster, watchNamespace=site.namespace) as (home, roles),
        berth_of(home, site.namespace, control_plane, site.cluster, tmp_path) as proxy,
    ):
        budgeted = await site.pool(gpuBudget=8)
        await site.cluster.create(site.deployment(budgeted))
        await site.settled()
        assert refused(proxy.calls, site) == set()
        assert proxy.permissions() <= granted(roles)

        await site.cluster.create(site.deployment(await site.pool(), "blind"))

        async def told() -> bool:
            message = (await site.get("blind")).get("status", {}).get("summary", {}).get("message", "")
            assert 'cannot list resource "pods"' in message, message
            return True

        await eventually(told)
    gc.collect()  # what kopf left behind is complained of here and not in another test
