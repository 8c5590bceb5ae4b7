"""Installing, upgrading, rolling back and removing Berth with the real helm on a real control plane.

Simulated kubelets start the operator's pods, so that helm can wait for them; no program runs in them. Workloads are
made by Berth itself, in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from berth.local.kwok import gpu_node
from tests.integration.chart.helm import CHART, Helm, Manifest, Refused
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


@pytest.fixture
async def home(cluster: Cluster) -> AsyncIterator[str]:
    """Where the operator lives: a namespace that admits restricted pods only."""
    async with cluster.namespace(f"home-{secrets.token_hex(3)}", labels=RESTRICTED) as name:
        yield name


async def without_crds(cluster: Cluster) -> None:
    """A cluster that has never heard of Berth."""
    for each in await cluster.list("customresourcedefinitions"):
        await cluster.delete("customresourcedefinitions", each["metadata"]["name"])

    async def gone() -> bool:
        """The server takes the objects along; where that fails it tries again ever later, or when the CRD changes."""
        left = await cluster.list("customresourcedefinitions")
        for each in left:
            stir = {"metadata": {"annotations": {"stir": secrets.token_hex(3)}}}
            with contextlib.suppress(ApiError):
                await cluster.patch("customresourcedefinitions", each["metadata"]["name"], None, stir)
        return not left

    await eventually(gone, timeout=120)


async def litter(cluster: Cluster, site: Site, home: str) -> None:
    """A ConfigMap whose owner, an LLMDeployment, is gone: it disappears once the garbage collector knows the kind."""
    owner = site.deployment("nowhere", "litter")
    owner["metadata"]["namespace"] = home
    created = await cluster.create(owner)
    reference = {key: created[key] for key in ("apiVersion", "kind")}
    reference |= {key: created["metadata"][key] for key in ("name", "uid")}
    metadata = {"name": "litter", "namespace": home, "ownerReferences": [reference]}
    await cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    await cluster.delete("llmdeployments", "litter", home)


async def serve(site: Site, kubeconfig: Path) -> dict[str, str]:
    """UIDs by name of the pods of a settled deployment, after Berth has looked at it once more."""
    generation = (await site.get())["metadata"]["generation"]
    async with running_berth(kubeconfig, site.namespace):
        await site.patch({"spec": {"update": {"deadline": f"{20 + generation}m"}}})
        await site.settled()
    return {each["metadata"]["name"]: each["metadata"]["uid"] for each in await site.pods()}


async def operator(cluster: Cluster, home: str) -> Manifest:
    """The operator's container."""
    deployment = await cluster.get("deployments", "berth", home)
    assert deployment["status"]["availableReplicas"] == 2
    container: Manifest = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


async def crd(cluster: Cluster) -> Manifest:
    return await cluster.get("customresourcedefinitions", LLM_DEPLOYMENTS)


def schema_in(folder: Path, found: Manifest) -> bool:
    """Whether the cluster serves the schema of `folder`."""
    wanted = yaml.safe_load((folder / "berth.dev_llmdeployments.yaml").read_text())
    return bool(found["spec"]["versions"][0]["schema"] == wanted["spec"]["versions"][0]["schema"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kopf: loop ends early
async def test_the_life_of_an_installation(
    helm: Helm, cluster: Cluster, home: str, site: Site, kubeconfig: Path
) -> None:
    await without_crds(cluster)
    release = ("berth", "--namespace", home)
    waiting = ("--wait", "--timeout", "60s")

    values = {"settings": {"workers": 8}}
    for index in range(2):
        await cluster.create(gpu_node(f"{home}-{index}", product="NVIDIA-H100-80GB-HBM3"))
    await helm("install", "berth", FIRST_CHART, *release[1:], *waiting, values=values)
    assert (await operator(cluster, home))["image"] == f"berth-operator:{FIRST_VERSION}"
    assert schema_in(RELEASED_CRDS, await crd(cluster))
    await litter(cluster, site, home)
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

    await asyncio.gather(helm("test", *release), pass_the_test(cluster, home))

    await helm("rollback", *release, *waiting)
    assert schema_in(RELEASED_CRDS, await crd(cluster))
    assert await serve(site, kubeconfig) == serving

    await helm("uninstall", *release, *waiting)
    assert await cluster.list("deployments", home) == []
    assert await serve(site, kubeconfig) == serving, "what is served goes on without the operator's installation"

    await helm("install", "berth", CHART, *release[1:], *waiting, values={"crds": {"keep": False}})
    assert await serve(site, kubeconfig) == serving, "installed again, it finds them"

    async def swept() -> bool:
        return await cluster.find("configmaps", "litter", home) is None

    await eventually(swept, timeout=60)  # the garbage collector learns of new kinds every 30 s
    await helm("uninstall", *release, *waiting)
    assert await cluster.find("customresourcedefinitions", LLM_DEPLOYMENTS) is None

    async def gone() -> bool:
        assert not (left := await site.pods()), left
        return True

    await eventually(gone, timeout=150)  # its next look at which kinds there are may be due only then
    gc.collect()  # what kopf left behind is complained of here and not in another test


async def pass_the_test(cluster: Cluster, home: str) -> None:
    """As the kubelet would once the test's program has ended well."""
    pod = await eventually(lambda: cluster.find("pods", "berth-test", home))
    await cluster.patch("pods", "berth-test", home, {"status": {"phase": "Succeeded"}}, subresource="status")
    assert pod["spec"]["containers"][0]["args"][1] == f"http://berth-metrics.{home}:8080/readyz"


async def test_crds_of_somebody_else_are_taken_over_only_on_demand(helm: Helm, cluster: Cluster, home: str) -> None:
    await cluster.install_crds()
    with pytest.raises(Refused, match="invalid ownership metadata"):
        await helm("install", "berth", CHART, "--namespace", home)
    take = ["--take-ownership"] if helm.major == 3 else ["--take-ownership", "--force-conflicts"]
    await helm("install", "berth", CHART, "--namespace", home, *take)
    assert (await crd(cluster))["metadata"]["annotations"]["meta.helm.sh/release-namespace"] == home
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
    subjects = {subject["namespace"] for each in changed for subject in each.get("subjects", ())}
    assert subjects == {"elsewhere"}
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
