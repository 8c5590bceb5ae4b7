"""`kubectl berth` as people have it: with a token that has only the chart's rights to view, or to edit, in a namespace.

The commands are programs of their own. A proxy stands between them and the API server, because two things are not here:
kubelets with logs, and a way from the API server to a page on a loopback address, which it refuses. Who may take that
way the API server itself decides.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from berth.local.controlplane import ControlPlane
from tests.integration.chart.helm import Helm
from tests.integration.chart.test_permissions import installed
from tests.integration.controller.conftest import Site
from tests.integration.placement.test_auto import automatic, pool
from tests.support.berth import ScriptedMetrics, free_port, running_berth
from tests.support.cluster import Cluster, eventually
from tests.support.fault_proxy import Call, Fault, FaultProxy

TOKEN = "hf_" + 30 * "x"


class Doorkeeper(FaultProxy):
    """Passes on everything; logs, and the page of live figures for those who may ask for it, it answers itself."""

    page = ""

    async def _forward(self, request: web.BaseRequest, call: Call, fault: Fault | None) -> web.StreamResponse:
        if call.subresource == "log":
            call.status = 200
            return web.Response(text=f"loading\nHF_TOKEN={TOKEN}\n")
        if (call.resource, call.subresource) != ("services", "proxy"):
            return await super()._forward(request, call, fault)
        call.status = 200 if await self._allowed(request, call) else 403
        if call.status == 403:
            return web.json_response(_forbidden(call), status=403)
        async with aiohttp.ClientSession() as session, session.get(self.page, params=request.url.query) as answer:
            return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)

    async def _allowed(self, request: web.BaseRequest, call: Call) -> bool:
        wanted = {key: getattr(call, key) for key in ("verb", "group", "resource", "subresource", "namespace", "name")}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {}}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        async with self._upstream.post(
            self._control_plane.url + path,
            json={**review, "spec": {"resourceAttributes": wanted}},
            headers={"Authorization": request.headers["Authorization"]},
        ) as answer:
            return bool(json.loads(await answer.read())["status"]["allowed"])


def _forbidden(call: Call) -> dict[str, Any]:
    words = f'services "{call.name}" is forbidden: User "x" cannot get resource "services/proxy"'
    return {"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": words}


@dataclass
class Person:
    """Somebody with a kubeconfig."""

    name: str
    kubeconfig: Path
    namespace: str

    async def __call__(self, *arguments: str | Path, fails: bool = False) -> str:
        """What `kubectl berth ARGUMENTS` says: on standard output, or, where it `fails`, why."""
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("kubectl-berth"),
            *arguments,
            "-n",
            self.namespace,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = (each.decode() for each in await process.communicate())
        assert fails is (process.returncode != 0), (arguments, output, errors)
        assert "Traceback" not in errors, errors
        return output + errors if fails else output


@asynccontextmanager
async def person(
    name: str, role: str | None, proxy: FaultProxy, control_plane: ControlPlane, site: Site, folder: Path
) -> AsyncIterator[Person]:
    """A service account with one of the cluster's own roles in the site's namespace, or with none."""
    metadata = {"name": name, "namespace": site.namespace}
    await site.cluster.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    if role is not None:
        await site.cluster.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", **metadata}],
            }
        )
    path = folder / f"{name}.kubeconfig"
    token = await site.cluster.service_account_token(name, site.namespace)
    control_plane.write_kubeconfig(path, token=token, server=proxy.url)
    yield Person(name, path, site.namespace)


async def _aggregated(cluster: Cluster, role: str, resource: str, verb: str) -> bool:
    """The cluster's role has what the chart adds to it."""
    rules = (await cluster.get("clusterroles", role)).get("rules") or ()
    return any(resource in rule.get("resources", ()) and verb in rule["verbs"] for rule in rules)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kopf: loop ends early
async def test_people_see_with_the_role_view_and_act_with_the_role_edit(
    kubectl: Helm, control_plane: ControlPlane, site: Site, kubeconfig: Path, tmp_path: Path
) -> None:
    metrics, port = ScriptedMetrics(), free_port()
    async with installed(kubectl, site.cluster) as (home, _), Doorkeeper(control_plane) as proxy:
        proxy.page = f"http://127.0.0.1:{port}/live"
        await eventually(lambda: _aggregated(site.cluster, "view", "llmdeployments", "watch"))
        await eventually(lambda: _aggregated(site.cluster, "edit", "llmdeployments", "patch"))
        settings = {"live": f"127.0.0.1:{port}", "live_service": f"{home}/berth-live", "metrics_warm_up": 0.0}
        async with (
            running_berth(kubeconfig, site.namespace, metrics=metrics, metrics_interval=0.5, **settings),
            person("viewer", "view", proxy, control_plane, site, tmp_path) as viewer,
            person("editor", "edit", proxy, control_plane, site, tmp_path) as editor,
            person("stranger", None, proxy, control_plane, site, tmp_path) as stranger,
        ):
            here = await pool(site, "A100-SXM-40", pricePerGPUHour="0.90")
            there = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
            await site.cluster.create(automatic(site, pools=(here, there), replicaGroups={"minAvailable": 2}))
            await site.settled()
            await _sees(viewer, proxy, metrics, site, tmp_path)
            await _is_refused(viewer, stranger)
            await _acts(editor, site, there)
    gc.collect()  # what kopf left behind is complained of here and not in another test


async def _sees(viewer: Person, proxy: FaultProxy, metrics: ScriptedMetrics, site: Site, folder: Path) -> None:
    for pod in await site.serving():
        metrics.serve(pod, 30)

    async def live() -> dict[str, Any]:
        (row,) = json.loads(await viewer("top", "-o", "json"))
        assert row["live"], row
        assert len(row["groups"]) == 2, row
        return dict(row)

    row = await eventually(live)
    assert (row["name"], row["ready"], row["running"]) == ("llama", "2/2", 2)
    text = await viewer("status", "llama")
    assert text.startswith("llama  serving  (2 of 2 groups, 2 needed)")
    assert text.count("1 running   0 waiting   KV 30%") == 2
    assert "<- in force" in await viewer("explain", "llama")
    assert "GroupServing" in await viewer("events", "llama")
    assert json.loads(await viewer("status", "llama", "-o", "json"))["live"]["fresh"] is True
    archive = folder / "bundle.tar.gz"
    await viewer("support-bundle", "llama", "-f", archive, "--operator-namespace", site.namespace)
    with tarfile.open(archive) as tar:
        files = {each.name.partition("/")[2]: tar.extractfile(each).read().decode() for each in tar}  # type: ignore[union-attr]
    assert {"deployment.yaml", "pods.yaml", "replicagroups.yaml", "events.yaml"} <= files.keys()
    assert sum(name.startswith("logs/") for name in files) == 2
    assert not any(TOKEN in content for content in files.values())
    missing = files["missing.txt"].splitlines()
    assert {line.partition(":")[0] for line in missing} <= {"gpupools", "nodes"}, missing
    assert "secrets" not in {call.resource for call in proxy.calls}
    assert {call.verb for call in proxy.calls} <= {"get", "list", "watch"}


async def _is_refused(viewer: Person, stranger: Person) -> None:
    said = await viewer("pause", "llama", fails=True)
    assert "you may not patch llmdeployments" in said
    assert "--clusterrole=edit" in said
    assert "you may not patch" in await viewer("failover", "llama", "g0", "--yes", fails=True)
    assert "there is llama" in await viewer("status", "lama", fails=True)
    said = await stranger("status", "llama", fails=True)
    assert "you may not get llmdeployments" in said
    assert "--clusterrole=view" in said


async def _acts(editor: Person, site: Site, there: str) -> None:
    assert "nothing was changed" in await editor("failover", "llama", "g0", "--dry-run")
    assert "give --yes" in await editor("failover", "llama", "g0", fails=True)
    assert "has no group g7" in await editor("failover", "llama", "g7", "--yes", fails=True)
    assert "berth.dev/request" not in (await site.get())["metadata"].get("annotations", {})
    assert "Done: " in await editor("failover", "llama", "g0", "--yes")

    async def replaced() -> bool:
        groups = (await site.get())["status"]["groups"]
        assert any(g["name"] == "g0" and g["incarnation"] > 1 and g["state"] == "Serving" for g in groups), groups
        return True

    await eventually(replaced)
    assert "pause None -> Changes" in await editor("pause", "llama")
    assert (await site.get())["spec"]["pause"] == "Changes"
    assert "pause Changes -> None" in await editor("resume", "llama")
    await site.settled()
    said = await editor("move", "llama", "--to", "nowhere", "--variant", "bf16", "--tp", "1", "--yes", fails=True)
    assert "Refused: there is no pool nowhere" in said
    words = ["move", "llama", "--to", there, "--variant", "bf16", "--tp", "1", "--groups", "2"]
    assert "nothing was changed" in await editor(*words, "--dry-run")
    assert "Done: move" in await editor(*words, "--yes")
    assert "Done: the move is taken back" in await editor("move", "llama", "--back", "--yes")
    assert '"before": "None"' in await editor("pause", "llama", "--all", "-o", "json")
    await site.cluster.delete("llmdeployments", "llama", site.namespace)
