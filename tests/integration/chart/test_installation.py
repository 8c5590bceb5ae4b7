"""Installing, upgrading, rolling back and removing Berth with the real helm on a real control plane.

Simulated kubelets start the operator's pods, so that helm can wait for them; no program runs in them. Workloads are
made by Berth itself, in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from berth.local.controlplane import ControlPlane
from tests.integration.chart.helm import CHART, Helm, Manifest, Refused
from tests.integration.chart.test_plugin import Person
from tests.integration.controller.conftest import Site
from tests.support.berth import running_berth
from tests.support.cluster import CRDS, ApiError, Cluster, eventually

RELEASED_CRDS = Path(__file__).parents[2] / "data" / "released" / "v0.1.0"
INSTALL = Path(__file__).parents[3] / "manifests" / "install.yaml"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
LLM_DEPLOYMENTS = "llmdeployments.berth.dev"
FIRST_VERSION = "0.1.0-rc.1"
FIRST_CHART = RELEASED_CRDS / f"berth-{FIRST_VERSION}.tgz"
"""As it was packaged: never changed, or upgrading from it proves nothing."""
PATIENCE = 300
"""Seconds for what only the server's, Helm's or the garbage collector's own pace decides."""


@pytest.fixture
async def home(cluster: Cluster) -> AsyncIterator[str]:
    """Where the operator lives: a namespace that admits restricted pods only."""
    async with cluster.namespace(f"home-{secrets.token_hex(3)}", labels=RESTRICTED) as name:
        yield name


STIR_SECONDS = 10.0
"""Between two changes of a CRD that goes. Not less: whoever writes faster than the server reads back makes its own
writes conflict, and holds up what it means to hurry."""


@asynccontextmanager
async def stirred(cluster: Cluster) -> AsyncIterator[None]:
    """CRDs on their way out are looked at again soon.

    The server takes their objects along; where that fails (their storage is being made anew) it tries again ever later,
    but at once when the CRD changes.
    """

    async def stir() -> None:
        while True:
            await asyncio.sleep(STIR_SECONDS)
            with contextlib.suppress(ApiError):
                for each in await cluster.list("customresourcedefinitions"):
                    if "deletionTimestamp" not in each["metadata"]:
                        continue
                    change = {"metadata": {"annotations": {"stir": secrets.token_hex(3)}}}
                    await cluster.patch("customresourcedefinitions", each["metadata"]["name"], None, change)

    task = asyncio.create_task(stir())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def without_crds(cluster: Cluster) -> None:
    """A cluster that has never heard of Berth."""
    for each in await cluster.list("customresourcedefinitions"):
        await cluster.delete("customresourcedefinitions", each["metadata"]["name"])

    async def gone() -> bool:
        assert not (left := await cluster.list("customresourcedefinitions")), [each["status"] for each in left]
        return True

    async with stirred(cluster):
        await eventually(gone, timeout=PATIENCE)


async def served(cluster: Cluster) -> bool:
    """The server answers for every kind: it says that it does a moment before."""
    for kind in ("llmdeployments", "replicagroups", "gpupools"):
        try:
            await cluster.list(kind)
        except ApiError as error:
            raise AssertionError(f"{kind}: {error}") from None
    return True


async def serve(site: Site, kubeconfig: Path) -> dict[str, str]:
    """UIDs by name of the pods of a settled deployment, after Berth has looked at it once more."""
    generation = (await site.get())["metadata"]["generation"]
    async with running_berth(kubeconfig, site.namespace):
        await site.patch({"spec": {"update": {"deadline": f"{20 + generation}m"}}})
        await site.settled(timeout=PATIENCE)
    return {each["metadata"]["name"]: each["metadata"]["uid"] for each in await site.pods()}


async def operator(cluster: Cluster, home: str) -> Manifest:
    """The operator's container, once two replicas of it are available."""

    async def settled() -> Manifest:
        """Helm looks at the ReplicaSet: the Deployment may say later what it sees there."""
        deployment = await cluster.get("deployments", "berth", home)
        counts = {key: deployment["status"].get(key) for key in ("replicas", "updatedReplicas", "availableReplicas")}
        assert set(counts.values()) == {2}, counts
        return deployment

    deployment = await eventually(settled, timeout=PATIENCE)
    container: Manifest = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


async def crd(cluster: Cluster) -> Manifest:
    return await cluster.get("customresourcedefinitions", LLM_DEPLOYMENTS)


def schema_in(folder: Path, found: Manifest) -> bool:
    """Whether the cluster serves the schema of `folder`."""
    wanted = yaml.safe_load((folder / "berth.dev_llmdeployments.yaml").read_text())
    return bool(found["spec"]["versions"][0]["schema"] == wanted["spec"]["versions"][0]["schema"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kopf: loop ends early
async def test_the_life_of_an_installation(
    helm: Helm,
    cluster: Cluster,
    control_plane: ControlPlane,
    home: str,
    site: Site,
    kubeconfig: Path,
    tmp_path: Path,
) -> None:
    await without_crds(cluster)
    release = ("berth", "--namespace", home)
    waiting = ("--wait", "--timeout", f"{PATIENCE}s")

    values = {"settings": {"workers": 8}}
    for index in range(2):  # both before anything is scheduled: spread is a wish
        await site.node(f"home-{site.tag}", index)
    await helm("install", "berth", FIRST_CHART, *release[1:], *waiting, values=values)
    assert (await operator(cluster, home))["image"] == f"berth-operator:{FIRST_VERSION}"
    assert schema_in(RELEASED_CRDS, await crd(cluster))
    await eventually(lambda: served(cluster), timeout=PATIENCE)
    hosts = {pod["spec"]["nodeName"] for pod in await cluster.list("pods", home)}
    assert len(hosts) == 2, "the replicas stand on different nodes"

    await site.cluster.create(site.deployment(await site.pool()))
    serving = await serve(site, kubeconfig)
    assert len(serving) == 2

    notes = await helm("upgrade", "berth", CHART, *release[1:], *waiting, "--reset-then-reuse-values")
    assert "kubectl get llmd" in notes
    container = await operator(cluster, home)
    assert container["image"] != f"berth-operator:{FIRST_VERSION}"
    assert {"name": "BERTH_WORKERS", "value": "8"} in container["env"], "values are kept"
    assert schema_in(CRDS, await crd(cluster)), "CRDs are upgraded with the chart"
    assert await serve(site, kubeconfig) == serving, "no workload pod was restarted"

    testing = asyncio.create_task(helm("test", *release, "--timeout", f"{PATIENCE}s"))
    assert (await end_well(cluster, home, "berth-test", testing))[1] == f"http://berth-metrics.{home}:8080/readyz"

    await helm("rollback", *release, *waiting)
    assert schema_in(RELEASED_CRDS, await crd(cluster))
    assert await serve(site, kubeconfig) == serving

    await helm("uninstall", *release, *waiting)
    assert await cluster.list("deployments", home) == []
    assert await serve(site, kubeconfig) == serving, "what is served goes on without the operator's installation"

    notes = await helm("install", "berth", CHART, *release[1:], *waiting, values={"crds": {"keep": False}})
    assert "uninstalling this release deletes every LLMDeployment" in notes
    assert await serve(site, kubeconfig) == serving, "installed again, it finds them"

    async with stirred(cluster):
        removing = asyncio.create_task(helm("uninstall", *release, *waiting))
        await clear_up(cluster, home, control_plane, tmp_path, removing)
    for kind in ("pods", "services", "poddisruptionbudgets"):
        assert await cluster.list(kind, site.namespace) == [], "gone with the CRDs, and nobody had to see to it"
    assert await cluster.find("customresourcedefinitions", LLM_DEPLOYMENTS) is None
    said = await Person("administrator", kubeconfig, site.namespace)("status", "llama", fails=True)
    assert "this cluster does not know LLMDeployments: install Berth with helm install" in said
    gc.collect()  # what kopf left behind is complained of here and not in another test


async def end_well(cluster: Cluster, home: str, name: str, awaited: asyncio.Task[str]) -> list[str]:
    """As the kubelet would once a pod's program has ended well; again if the simulated one says otherwise.

    Returns the program's arguments when Helm's command, which waits for it, has ended.
    """
    arguments: list[str] = []
    while not awaited.done():
        pod = await cluster.find("pods", name, home)
        if pod is not None and pod["status"].get("phase") != "Succeeded":
            arguments = pod["spec"]["containers"][0]["args"]
            with contextlib.suppress(ApiError):
                passed = {"status": {"phase": "Succeeded"}}
                await cluster.patch("pods", name, home, passed, subresource="status")
        await asyncio.wait([awaited], timeout=0.2)
    await awaited
    return arguments


async def clear_up(
    cluster: Cluster, home: str, control_plane: ControlPlane, folder: Path, removing: asyncio.Task[str]
) -> None:
    """What the pod that Helm starts before the CRDs go would do: its program, with its rights, before it ends well."""

    async def started() -> Manifest | None:
        assert not removing.done(), "Helm waited for nobody"
        return await cluster.find("pods", "berth-clear", home)

    pod = await eventually(started, timeout=PATIENCE)
    token = await cluster.service_account_token(pod["spec"]["serviceAccountName"], home)
    control_plane.write_kubeconfig(folder / "clear.kubeconfig", token=token)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "berth", *pod["spec"]["containers"][0]["args"]),
        env={**os.environ, "BERTH_KUBECONFIG": str(folder / "clear.kubeconfig")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert (process.returncode, said.splitlines()[-1]) == (0, "nothing is left"), said
    assert "1 llmdeployments (" in said
    await end_well(cluster, home, "berth-clear", removing)


async def test_crds_of_somebody_else_are_taken_over_only_on_demand(helm: Helm, cluster: Cluster, home: str) -> None:
    await cluster.install_crds()
    with pytest.raises(Refused, match="invalid ownership metadata"):
        await helm("install", "berth", CHART, "--namespace", home)
    take = ["--take-ownership"] if helm.major == 3 else ["--take-ownership", "--force-conflicts"]
    await helm("install", "berth", CHART, "--namespace", home, *take)
    assert (await crd(cluster))["metadata"]["annotations"]["meta.helm.sh/release-namespace"] == home
    if helm.major == 4:
        with pytest.raises(Refused, match=r"conflict with .*\.spec\.versions"):
            await helm("upgrade", "berth", FIRST_CHART, "--namespace", home)
    await helm("upgrade", "berth", FIRST_CHART, "--namespace", home, *take[1:])
    assert schema_in(RELEASED_CRDS, await crd(cluster))
    await helm("upgrade", "berth", CHART, "--namespace", home)
    assert schema_in(CRDS, await crd(cluster)), "what the last one took over is Helm's alone"
    await helm("uninstall", "berth", "--namespace", home)


async def test_the_plain_manifest_is_clean(kubectl: Helm, cluster: Cluster) -> None:
    """A dry run needs the namespace, since it makes none for what comes after it."""
    namespace = yaml.safe_load(INSTALL.read_text().split("---\n")[1])
    await cluster.apply(namespace)
    said = await kubectl.apply("apply", "--server-side", "--dry-run=server", "-f", INSTALL)
    assert len(said.splitlines()) == INSTALL.read_text().count("\nkind: ")
    assert all(line.endswith("serverside-applied (server dry run)") for line in said.splitlines()), said
    said = await kubectl.apply("apply", "--dry-run=server", "-f", INSTALL)
    assert "annotation" not in said, "every object fits into the annotation of a client-side apply"
    await cluster.delete("namespaces", namespace["metadata"]["name"])


async def test_an_overlay_of_the_kustomize_base_renames_what_has_to_be_renamed(kubectl: Helm, tmp_path: Path) -> None:
    """The base is the plain manifest; namespace and image are what everybody changes."""
    base = list(yaml.safe_load_all(await kubectl.apply("kustomize", INSTALL.parent)))
    plain = [each for each in yaml.safe_load_all(INSTALL.read_text()) if each]

    def sorted_by_name(manifests: list[Manifest]) -> list[Manifest]:
        return sorted(manifests, key=lambda each: (each["kind"], each["metadata"]["name"]))

    assert sorted_by_name(base) == sorted_by_name(plain)
    shutil.copytree(INSTALL.parent, tmp_path / "base", ignore=shutil.ignore_patterns("samples"))
    overlay = {
        "resources": ["base"],
        "namespace": "elsewhere",
        "images": [{"name": "berth-operator", "newName": "registry.example/berth-operator", "newTag": "9"}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    changed = list(yaml.safe_load_all(await kubectl.apply("kustomize", tmp_path)))
    assert {each["metadata"].get("namespace", "elsewhere") for each in changed} == {"elsewhere"}
    subjects = [subject for each in changed for subject in each.get("subjects", ())]
    assert {each["namespace"] for each in subjects if each["kind"] == "ServiceAccount"} == {"elsewhere"}
    (container,) = next(e for e in changed if e["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/berth-operator:9"


async def test_people_get_rights_with_the_roles_they_have(
    kubectl: Helm, cluster: Cluster, home: str, namespace: str
) -> None:
    for role in await kubectl.template("--namespace", home):
        if role["kind"] == "ClusterRole":
            await cluster.apply(role)
    for person in ("view", "edit"):
        await cluster.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": person, "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": person},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": person}],
            }
        )

    async def may(person: str, verb: str, resource: str, subresource: str = "") -> bool:
        attributes = {"verb": verb, "group": "berth.dev", "resource": resource, "namespace": namespace}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}}
        spec = {"user": person, "resourceAttributes": {**attributes, "subresource": subresource}}
        return bool((await cluster.create({**review, "spec": spec}))["status"]["allowed"])

    await eventually(lambda: may("view", "get", "llmdeployments"))
    await eventually(lambda: may("edit", "create", "llmdeployments"))
    assert await may("view", "watch", "replicagroups")
    assert await may("edit", "patch", "llmdeployments", "scale")
    assert not await may("view", "create", "llmdeployments")
    assert not await may("edit", "patch", "llmdeployments", "status")
    assert not await may("edit", "create", "replicagroups")
    assert not await may("edit", "patch", "gpupools")
