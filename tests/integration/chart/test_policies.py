"""The policy checker sees what it is for: what passes it today would not pass with the protection taken away."""

from __future__ import annotations

from copy import deepcopy

import yaml

from berth.local import binaries
from tests.integration.chart.helm import Helm, Manifest
from tools.policies import NOT_FOLLOWED, scored


def complaints(manifests: list[Manifest]) -> list[str]:
    program = binaries.provide(["kube-score"])["kube-score"]
    return list(scored(program, yaml.safe_dump_all(manifests), NOT_FOLLOWED))


async def test_a_chart_without_its_protections_is_complained_of(kubectl: Helm) -> None:
    rendered = await kubectl.template("--skip-tests", values={"networkPolicy": {"egress": True}})
    assert complaints(rendered) == []
    without_policy = [each for each in rendered if each["kind"] != "NetworkPolicy"]
    assert any("pod-networkpolicy" in line for line in complaints(without_policy))
    for part in ("readinessProbe", "securityContext", "resources"):
        weaker = deepcopy(rendered)
        (deployment,) = (each for each in weaker if each["kind"] == "Deployment")
        del deployment["spec"]["template"]["spec"]["containers"][0][part]
        assert complaints(weaker) != [], part
