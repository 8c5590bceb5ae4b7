"""What a test does to a cluster as its administrator: plain dicts in and out, and waiting for conditions.

On purpose not Berth's own client: a fault in that one must not hide itself.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import yaml

from berth.labels import SIMULATED_KUBELET
from berth.local.kwok import DEAD, RUNNING

Manifest = dict[str, Any]
T = TypeVar("T")

LONGEST_EVENT = 8 * 2**20
"""Bytes of one line of a watch; objects may have 1.5 MiB, and more in JSON with managed fields."""
CRDS = Path(__file__).parents[2] / "crds"


class ApiError(Exception):
    """Any answer of 400 and above; `status`, `reason` and `message` as in the server's Status object."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Resource:
    """Where the objects of one kind live: /apis/<group>/<version> and plural."""

    prefix: str
    plural: str
    namespaced: bool


class Cluster:
    """An administrator's client. Resources are named by plural ("pods") or kind ("Pod"), as the server discovers them.

    `server` overrides the address of the kubeconfig (a fault proxy). Use as `async with`.
    """

    def __init__(self, kubeconfig: Path, *, server: str | None = None, token: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server = server or cluster["server"]
        self._token = token or user["token"]
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._resources: dict[str, Resource] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"},
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
            timeout=aiohttp.ClientTimeout(total=60),
            read_bufsize=LONGEST_EVENT,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    # --- objects ------------------------------------------------------------------------------------------------------

    async def get(self, resource: str, name: str, namespace: str | None = None) -> Manifest:
        """Raises ApiError with status 404 if there is no such object."""
        return await self.request("GET", await self._path(resource, namespace, name))

    async def find(self, resource: str, name: str, namespace: str | None = None) -> Manifest | None:
        """Like `get`, but None if there is no such object."""
        try:
            return await self.get(resource, name, namespace)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, resource: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        """All objects in one namespace, or in all of them; selectors as kubectl takes them."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        answer = await self.request("GET", await self._path(resource, namespace), query=query)
        found: list[Manifest] = answer["items"]
        return found

    async def create(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Manifest:
        """POST with strict field validation, as kubectl does."""
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return await self.request("POST", await self._home(manifest), query=query, body=manifest)

    async def apply(self, manifest: Mapping[str, Any], *, manager: str = "tests") -> Manifest:
        """Server-side apply that takes over conflicting fields."""
        path = f"{await self._home(manifest)}/{manifest['metadata']['name']}"
        query = {"fieldManager": manager, "force": "true"}
        return await self.request("PATCH", path, query=query, body=manifest, content="application/apply-patch+yaml")

    async def replace(self, manifest: Mapping[str, Any]) -> Manifest:
        """PUT; 409 if the resourceVersion in it is not the newest."""
        path = f"{await self._home(manifest)}/{manifest['metadata']['name']}"
        return await self.request("PUT", path, body=manifest)

    async def patch(
        self,
        resource: str,
        name: str,
        namespace: str | None,
        body: Mapping[str, Any],
        *,
        subresource: str = "",
        strategic: bool = False,
    ) -> Manifest:
        """Merge patch, or strategic merge patch (built-in kinds only: merges lists by key)."""
        path = await self._path(resource, namespace, name) + (f"/{subresource}" if subresource else "")
        content = "application/strategic-merge-patch+json" if strategic else "application/merge-patch+json"
        return await self.request("PATCH", path, body=body, content=content)

    async def delete(
        self,
        resource: str,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
        grace: int | None = None,
    ) -> None:
        """Absent objects are fine. `propagation`: Background, Foreground or Orphan; `grace` in seconds."""
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            await self.request("DELETE", await self._path(resource, namespace, name), body=options)
        except ApiError as error:
            if error.status != 404:
                raise

    @asynccontextmanager
    async def watch(
        self, resource: str, namespace: str | None = None, *, resource_version: str = ""
    ) -> AsyncIterator[AsyncIterator[Manifest]]:
        """Events {type, object} from `resource_version` on, until the server ends the watch."""
        assert self._session is not None
        query = {"watch": "true", "resourceVersion": resource_version}
        url = self.server + await self._path(resource, namespace)
        async with self._session.get(url, params=query, timeout=aiohttp.ClientTimeout(total=None)) as answer:
            if answer.status >= 400:
                raise await _error(answer)
            yield (json.loads(line) async for line in answer.content)

    # --- shorthand ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def namespace(self, name: str, *, labels: Mapping[str, str] | None = None) -> AsyncIterator[str]:
        """A namespace in which pods can be created at once and nothing comes by itself any more.

        Its deletion is started at the end, not awaited.
        """
        metadata = {"name": name, "labels": dict(labels or {})}
        await self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        try:
            await eventually(lambda: self.find("serviceaccounts", "default", name))
            await eventually(lambda: self.find("configmaps", "kube-root-ca.crt", name))
            yield name
        finally:
            await self.delete("namespaces", name)

    async def install_crds(self, folder: Path = CRDS) -> None:
        """Applies every CRD of `folder` and waits until the server serves them."""
        for path in sorted(folder.glob("*.yaml")):
            for manifest in yaml.safe_load_all(path.read_text()):
                await self.apply(manifest)
                await eventually(partial(self._served, manifest))
        self._resources.clear()

    async def service_account_token(self, name: str, namespace: str, seconds: int = 3600) -> str:
        """A token with which a client acts as the service account."""
        path = await self._path("serviceaccounts", namespace, name) + "/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        answer = await self.request("POST", path, body=body)
        token: str = answer["status"]["token"]
        return token

    async def kill_node(self, name: str) -> None:
        """The simulated node falls silent: Lease, status and deletion handling stop."""
        await self.patch("nodes", name, None, {"metadata": {"labels": {SIMULATED_KUBELET: DEAD}}})

    async def revive_node(self, name: str) -> None:
        await self.patch("nodes", name, None, {"metadata": {"labels": {SIMULATED_KUBELET: RUNNING}}})

    # --- plumbing -----------------------------------------------------------------------------------------------------

    async def request(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> Manifest:
        """One call to `path` below the server's address; the answer's JSON. Raises ApiError."""
        assert self._session is not None, "use `async with Cluster(...)`"
        async with self._session.request(
            verb,
            self.server + path,
            params={name: value for name, value in (query or {}).items() if value},
            data=json.dumps(body) if body is not None else None,
            headers={"Content-Type": content},
        ) as answer:
            if answer.status >= 400:
                raise await _error(answer)
            parsed: Manifest = await answer.json(content_type=None)
            return parsed

    async def _served(self, crd: Manifest) -> bool:
        """Established says that the names are taken; the storage behind them is ready a moment later."""
        status = (await self.get("customresourcedefinitions", crd["metadata"]["name"])).get("status", {})
        conditions = {each["type"]: each["status"] for each in status.get("conditions") or []}
        if conditions.get("Established") != "True":
            return False
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        for version in crd["spec"]["versions"]:
            try:
                await self.request("GET", f"/apis/{group}/{version['name']}/{plural}", query={"limit": "1"})
            except ApiError as error:
                if error.status in (404, 429):
                    return False
                raise
        return True

    async def _home(self, manifest: Mapping[str, Any]) -> str:
        return await self._path(manifest["kind"], manifest["metadata"].get("namespace"))

    async def _path(self, resource: str, namespace: str | None, name: str = "") -> str:
        if resource not in self._resources:
            await self._discover()
        found = self._resources[resource]
        scope = f"/namespaces/{namespace}" if found.namespaced and namespace else ""
        return f"{found.prefix}{scope}/{found.plural}" + (f"/{name}" if name else "")

    async def _discover(self) -> None:
        """Reads all kinds by aggregated discovery; earlier groups win, and in a group its preferred version."""
        assert self._session is not None
        accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        for root in ("/api", "/apis"):
            async with self._session.get(self.server + root, headers={"Accept": accept}) as answer:
                groups = (await answer.json(content_type=None))["items"]
            for group in groups:
                for version in group["versions"]:
                    home = "/".join(filter(None, (root, group["metadata"].get("name"), version["version"])))
                    for each in version.get("resources", []):
                        found = Resource(home, each["resource"], each["scope"] == "Namespaced")
                        self._resources.setdefault(each["resource"], found)
                        self._resources.setdefault(each["responseKind"]["kind"], found)


PATIENCE = 150.0
"""Seconds until a test gives up. Long: what counts is what happens, and the machine may be slow."""


async def eventually(condition: Callable[[], Awaitable[T]], *, timeout: float = PATIENCE) -> T:
    """Asks until `condition` gives something true, and gives that.

    `timeout` is in seconds. A condition may raise AssertionError to say what is missing: it counts as not yet, and its
    text is part of the final AssertionError.
    """
    deadline = time.monotonic() + timeout
    missing = ""
    while True:
        try:
            if result := await condition():
                return result
            missing = f"{result!r}"
        except AssertionError as error:
            missing = str(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout:.0f} s: {missing}")
        await asyncio.sleep(0.05)


async def _error(answer: aiohttp.ClientResponse) -> ApiError:
    text = await answer.text()
    try:
        status = json.loads(text)
    except ValueError:
        return ApiError(answer.status, "", text)
    return ApiError(answer.status, status.get("reason", ""), status.get("message", text))
