"""Values: bad ones are refused in words, good ones become what the operator and the API server accept."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from berth.settings import Settings
from tests.integration.chart.helm import CHART, Helm, Manifest, Refused
from tests.support.cluster import Cluster

EVERYTHING: Manifest = {
    "replicas": 3,
    "image": {"repository": "registry.example:5000/berth", "digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "watchNamespace": "models",
    "serviceAccount": {"name": "operator", "annotations": {"example.com/role": "berth"}},
    "verbose": True,
    "settings": {"prometheus": "http://prometheus.monitoring:9090"},
    "podAnnotations": {"example.com/team": "serving"},
    "podLabels": {"example.com/team": "serving"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "infra", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "system-cluster-critical",
    "metrics": {"monitor": "PodMonitor", "labels": {"release": "prometheus"}, "alerts": True, "dashboard": True},
    "live": {"readers": [{"kind": "ServiceAccount", "name": "monitor", "namespace": "models"}]},
    "networkPolicy": {
        "egress": True,
        "egressTo": [{"ports": [{"port": 9090}], "to": [{"namespaceSelector": {}}]}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
}
MONITORING = ("PodMonitor", "ServiceMonitor", "PrometheusRule")
MONITORS = [f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in MONITORING]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replica": 2}, "'replica' not allowed"),
        ({"replicas": 0}, "/replicas.*minimum"),
        ({"replicas": "two"}, "/replicas.*want integer"),
        ({"image": {"repository": "berth:latest"}}, "/image/repository.*pattern"),
        ({"image": {"digest": "sha256:short"}}, "/image/digest.*pattern"),
        ({"imagePullSecrets": ["pull"]}, "/imagePullSecrets/0.*want object"),
        ({"crds": {"enabled": True, "keeep": False}}, "'keeep' not allowed"),
        ({"settings": {"worker": 3}}, "'worker' not allowed"),
        ({"settings": {"workers": 0}}, "/settings/workers.*minimum"),
        ({"settings": {"workers": 1.5}}, "/settings/workers.*want integer"),
        ({"settings": {"leaseName": "mine"}}, "'leaseName' not allowed"),
        ({"watchNamespace": "Models"}, "/watchNamespace.*pattern"),
        ({"resources": {"limit": {}}}, "'limit' not allowed"),
        ({"resources": {"limits": {"memory": "plenty"}}}, "/resources/limits/memory.*pattern"),
        ({"metrics": {"monitor": "Yes"}}, "/metrics/monitor.*must be one of"),
        ({"networkPolicy": {"metricsFrom": [{}]}}, "/networkPolicy/metricsFrom/0.*minProperties"),
        ({"networkPolicy": {"egressTo": [{"port": 9090}]}}, "'port' not allowed"),
        (
            {"settings": {"prometheus": "http://prometheus:9090"}, "networkPolicy": {"egress": True}},
            "name it in networkPolicy.egressTo",
        ),
        ({"tolerations": {}}, "/tolerations.*want array"),
        ({"live": {"readers": [{"kind": "Everybody", "name": "x"}]}}, "/live/readers/0/kind.*must be one of"),
    ],
    ids=json.dumps,
)
async def test_bad_values_are_refused(helm: Helm, values: Manifest, complaint: str) -> None:
    with pytest.raises(Refused, match=f"(?s){complaint}"):
        await helm.template(values=values)


@pytest.mark.parametrize("bound", ["minimum", "maximum"])
async def test_each_setting_reaches_the_operator(helm: Helm, bound: str) -> None:
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]["properties"]
    wanted = {name: about[bound] for name, about in known.items() if about["type"] != "string"}
    rendered = await helm.template("--namespace", "home", values={"settings": wanted, "watchNamespace": "models"})
    settings = Settings.from_environment(environment(rendered))
    assert settings.namespace == "models"
    assert settings.lease_name == "berth"
    assert settings.listen_address == ("0.0.0.0", 8080)
    assert (settings.live_address, settings.live_service) == (("0.0.0.0", 8081), "home/berth-live")
    found = {name: getattr(settings, "".join(f"_{c.lower()}" if c.isupper() else c for c in name)) for name in wanted}
    assert found == wanted


def environment(rendered: list[Manifest]) -> dict[str, str]:
    """Of the operator's container, with the names of earlier variables replaced as the kubelet does."""
    deployment = next(each for each in rendered if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    found: dict[str, str] = {}
    for each in container["env"]:
        value = each.get("value", "home")
        found[each["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), value)
    return found


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
async def test_the_api_server_accepts_what_is_rendered(
    helm: Helm, cluster: Cluster, namespace: str, values: dict[str, Any]
) -> None:
    """Strictly: an unknown field is an error. Pods pass Pod Security `restricted` in the test of the installation."""
    values = values | ({"watchNamespace": namespace} if "watchNamespace" in values else {})
    rendered = await helm.template("--namespace", namespace, *MONITORS, values=values)
    for manifest in rendered:
        if manifest["apiVersion"].startswith("monitoring.coreos.com"):
            assert manifest["kind"] in MONITORING
        elif manifest["kind"] != "CustomResourceDefinition":
            await cluster.create(manifest, dry_run=True)


async def test_without_a_prometheus_operator_nothing_of_its_kinds_is_rendered(helm: Helm) -> None:
    for monitor in ("ServiceMonitor", "PodMonitor"):
        values = {"metrics": {"monitor": monitor, "alerts": True}}
        assert not {each["kind"] for each in await helm.template(values=values)} & set(MONITORING)
        rendered = {each["kind"]: each for each in await helm.template(*MONITORS, values=values)}
        assert rendered.keys() & set(MONITORING) == {monitor, "PrometheusRule"}
        selector = rendered[monitor]["spec"]["selector"]["matchLabels"]
        assert selector["app.kubernetes.io/component"] == "operator"


async def test_alerts_and_dashboard_are_carried_unchanged(helm: Helm) -> None:
    """Both are full of braces that Helm must not read."""
    rendered = await helm.template(*MONITORS, values={"metrics": {"alerts": True, "dashboard": True}})
    (rule,) = (each for each in rendered if each["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    (board,) = (each for each in rendered if each["kind"] == "ConfigMap")
    assert json.loads(board["data"]["berth.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize(("ingress", "egress"), [(True, False), (False, True), (True, True)])
async def test_a_direction_that_is_not_restricted_is_not_named(helm: Helm, ingress: bool, egress: bool) -> None:
    """A direction that is named without rules would be closed altogether."""
    rendered = await helm.template(values={"networkPolicy": {"ingress": ingress, "egress": egress}})
    (policy,) = (each["spec"] for each in rendered if each["kind"] == "NetworkPolicy")
    wanted = [name for name, on in (("Ingress", ingress), ("Egress", egress)) if on]
    assert policy["policyTypes"] == wanted
    assert ("ingress" in policy, "egress" in policy) == (ingress, egress)


async def test_by_default_only_a_labelled_namespace_and_the_charts_test_may_read_metrics(helm: Helm) -> None:
    """Everybody may ask for live figures, which the API server passes on, and nobody for anything else."""
    rendered = await helm.template()
    (policy,) = (each["spec"] for each in rendered if each["kind"] == "NetworkPolicy")
    (deployment,) = (each["spec"] for each in rendered if each["kind"] == "Deployment")
    labels = deployment["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items(), "it is about the operator's pods"
    ports = {each["name"] for each in deployment["template"]["spec"]["containers"][0]["ports"]}
    opened = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    assert opened.keys() == ports == {"http", "live"}
    test, monitoring = opened["http"]
    assert monitoring == {"namespaceSelector": {"matchLabels": {"berth.dev/metrics": "allowed"}}}
    (tester,) = (each for each in rendered if each["kind"] == "Pod")
    assert test["podSelector"]["matchLabels"].items() <= tester["metadata"]["labels"].items()
    assert opened["live"] is None


async def test_without_policies_none_is_made(helm: Helm) -> None:
    values = {"networkPolicy": {"ingress": False}}
    assert "NetworkPolicy" not in {each["kind"] for each in await helm.template(values=values)}
