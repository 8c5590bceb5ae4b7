"""A HorizontalPodAutoscaler scales a deployment from its first moment on, by a metric of its leaders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.cluster.kubectl import Manifest
from e2e.cluster.shell import run, wait
from e2e.site import SAMPLES, Site, sample
from e2e.support import metrics_stub
from e2e.support.berth import ON_CONTROL_PLANE
from e2e.support.deployments import Deployment
from e2e.support.traffic import traffic

STUB = Path(metrics_stub.__file__)
TARGET = 24


class Metrics:
    """The stub in its pod."""

    def __init__(self, site: Site, namespace: str) -> None:
        self._exec = ["exec", "-i", f"--namespace={namespace}", "metrics", "--", "python", "-c"]
        self._kubectl = site.cluster.kubectl

    def tell(self, values: dict[str, int]) -> None:
        """From now on these are the leaders' values."""
        program = "import sys; open('/tmp/values', 'w').write(sys.stdin.read())"
        self._kubectl(*self._exec, program, input=json.dumps(values))

    def selectors(self) -> set[str]:
        return set(self._kubectl(*self._exec, "print(open('/tmp/selectors').read())").split("\n")) - {""}


@pytest.fixture
def metrics(site: Site, namespace: str, tmp_path: Path) -> Iterator[Metrics]:
    kubectl = site.cluster.kubectl
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=metrics"]
    run(*request, "-keyout", key, "-out", certificate)
    files = {STUB.name: STUB.read_text(), "tls.key": key.read_text(), "tls.crt": certificate.read_text()}
    kubectl.apply(*_stub(namespace, site.berth.image.name, files))
    kubectl("wait", f"--namespace={namespace}", "pod", "metrics", "--for=condition=Ready", "--timeout=60s")
    kubectl("wait", "apiservice", "v1beta2.custom.metrics.k8s.io", "--for=condition=Available", "--timeout=60s")
    yield Metrics(site, namespace)
    kubectl.delete("apiservice", "v1beta2.custom.metrics.k8s.io")


def test_horizontal_pod_autoscaler(site: Site, namespace: str, metrics: Metrics) -> None:
    kubectl = site.cluster.kubectl
    manifest = sample("manual-scaling", namespace, site)
    manifest["spec"].pop("replicas")
    autoscaler = _autoscaler()
    name = manifest["metadata"]["name"]
    autoscaler["metadata"]["namespace"] = namespace
    autoscaler["spec"] |= {"minReplicas": 1, "maxReplicas": 2}
    kubectl.apply(manifest, autoscaler)
    deployment = Deployment(kubectl, namespace, name)
    deployment.wait_until_serving(1)
    with traffic(site.cluster, deployment.address) as client:
        metrics.tell({pod["metadata"]["name"]: 2 * TARGET for pod in deployment.leaders()})
        deployment.wait_until_serving(2, timeout=240)
    assert not client.stop().failed, client.stop()
    assert metrics.selectors() == {deployment.status()["selector"]}, "the autoscaler asks for leaders alone"
    wait("the autoscaler is content", lambda: _able(kubectl.get("hpa", name, namespace)), timeout=60)


def _autoscaler() -> Manifest:
    """The one beside the sample, word by word."""
    (found,) = [
        each
        for each in yaml.safe_load_all((SAMPLES / "manual-scaling.yaml").read_text())
        if each["kind"] == "HorizontalPodAutoscaler"
    ]
    manifest: Manifest = found
    return manifest


def _able(autoscaler: Manifest) -> bool:
    conditions = {each["type"]: each["status"] for each in autoscaler["status"]["conditions"]}
    return (conditions["AbleToScale"], conditions["ScalingActive"]) == ("True", "True")


def _stub(namespace: str, image: str, files: dict[str, str]) -> list[Manifest]:
    own = {"name": "metrics", "namespace": namespace}
    container = {
        "name": "metrics",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python", f"/e2e/{STUB.name}"],
        "readinessProbe": {"tcpSocket": {"port": 6443}, "periodSeconds": 1},
        "volumeMounts": [{"name": "files", "mountPath": "/e2e"}, {"name": "tmp", "mountPath": "/tmp"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        **ON_CONTROL_PLANE,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "files", "configMap": {"name": "metrics"}}, {"name": "tmp", "emptyDir": {}}],
    }
    service = {"name": "metrics", "namespace": namespace, "port": 443}
    api = {"group": "custom.metrics.k8s.io", "version": "v1beta2", "insecureSkipTLSVerify": True, "service": service}
    labelled = {**own, "labels": {"app": "metrics"}}
    routing = {"selector": {"app": "metrics"}, "ports": [{"port": 443, "targetPort": 6443}]}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": own, "data": files},
        {"apiVersion": "v1", "kind": "Pod", "metadata": labelled, "spec": pod},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": own,
            "spec": routing,
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta2.custom.metrics.k8s.io"},
            "spec": {**api, "groupPriorityMinimum": 100, "versionPriority": 100},
        },
    ]
