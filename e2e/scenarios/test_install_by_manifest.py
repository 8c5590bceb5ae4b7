"""Berth installed by kubectl from manifests/, through an overlay with an image of one's own, adopts what serves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import yaml

from e2e.cluster.images import CHECKOUT
from e2e.cluster.kubectl import Manifest
from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support.berth import NAMESPACE, ON_CONTROL_PLANE, RELEASE
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic

MANIFESTS = CHECKOUT / "manifests"
KEPT = ("CustomResourceDefinition", "Namespace")
"""With these everything that serves would go, too."""


def test_install_by_manifest(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    before = {uid(pod) for pod in served.pods()}
    overlay = _overlay(site, CHECKOUT / "build" / "e2e" / "overlay")
    with traffic(site.cluster, served.address) as client:
        site.berth.helm("uninstall", RELEASE, "--wait")
        wait("no operator runs", lambda: not site.berth.pods(), timeout=60)
        kubectl("apply", "--dry-run=server", "-f", MANIFESTS / "install.yaml")
        kubectl("apply", "--server-side", "--force-conflicts", "-k", overlay)
        kubectl("rollout", "status", f"--namespace={NAMESPACE}", f"deployment/{RELEASE}", "--timeout=100s")
        site.berth.wait_for_leader()
        served.patch(placement=served.with_groups(3))
        served.wait_until_serving(3)
        parts = list(yaml.safe_load_all(kubectl("kustomize", overlay)))
        leaving = [each for each in parts if each["kind"] not in KEPT]
        kubectl("delete", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": leaving}))
        site.berth.install()
        for each in parts:
            if each["kind"] == "CustomResourceDefinition":
                part = _only_its_name(each)  # else kubectl goes on to own it beside Helm
                kubectl.apply(part, arguments=("--validate=false",))
        site.berth.wait_for_leader()
        served.patch(placement=served.with_groups(2))
        served.wait_until_serving(2)
    assert not client.stop().failed, client.stop()
    assert {uid(pod) for pod in served.pods()} == before, "adopted, not replaced"


def _only_its_name(manifest: Manifest) -> Manifest:
    """Applied by whoever applied the whole: gives up the rest, which stays as it is where somebody else owns it."""
    name = {"name": manifest["metadata"]["name"]}
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": name}


def _overlay(site: Site, folder: Path) -> Path:
    """As docs/install.md describes: the base, this site's image, and the node that operators stand on."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name, _, tag = site.berth.image.name.rpartition(":")
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": RELEASE, "namespace": NAMESPACE},
        "spec": {"template": {"spec": ON_CONTROL_PLANE}},
    }
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(MANIFESTS, folder)],
        "images": [{"name": "berth-operator", "newName": name, "newTag": tag}],
        "patches": [{"patch": json.dumps(patch)}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder
