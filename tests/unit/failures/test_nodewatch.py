"""The watch over nodes with copies and answers of the API server that are made up."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from berth import labels
from berth.controller.nodewatch import Limits, NodeWatch
from berth.core.faults import DEFAULT_CONDITIONS, DEFAULT_TAINTS, FaultRules
from berth.core.nodes import NodeView
from berth.core.observed import Contact
from berth.errors import Transient
from berth.kube.errors import Forbidden
from berth.kube.kinds import LEASE, NODE, Kind, Object
from berth.kube.reflector import Store

RULES = FaultRules.parse(DEFAULT_CONDITIONS, DEFAULT_TAINTS)


class Listing(NamedTuple):
    items: list[Object]


class Copy:
    def __init__(self) -> None:
        self.store = Store()

    def put(self, obj: Object) -> None:
        metadata = obj["metadata"]
        self.store.put((metadata.get("namespace", ""), metadata["name"]), obj)


class Cluster:
    """`nodes` nodes with one pod each; Leases of `renewing` nodes change at each list."""

    def __init__(self, nodes: int) -> None:
        self.nodes, self.pods, self.groups, self.pools = Copy(), Copy(), Copy(), Copy()
        self.renewing = {f"n{number}" for number in range(nodes)}
        self.counts = dict.fromkeys(self.renewing, 0)
        self.existing = set(self.renewing)
        self.asked_for: list[str] = []
        self.error: Exception | None = None
        pool = {"apiVersion": labels.API_VERSION, "kind": "GPUPool", "metadata": {"name": "h100"}}
        selector = {"gpu": "H100-SXM-80", "nodeSelector": {"pool": "h100"}}
        self.pools.put({**pool, "spec": {**selector, "resourceName": "nvidia.com/gpu", "gpusPerNode": 8}})
        for name in sorted(self.renewing):
            self.set_node(name)
            self.pods.put(
                {
                    "metadata": {
                        "name": f"pod-{name}",
                        "namespace": "ns",
                        "uid": f"uid-{name}",
                        "resourceVersion": "1",
                        "labels": {labels.POOL: "h100", labels.DEPLOYMENT: "llama"},
                    },
                    "spec": {
                        "nodeName": name,
                        "containers": [{"name": "triton", "resources": {"limits": {"nvidia.com/gpu": "8"}}}],
                    },
                    "status": {"phase": "Running"},
                }
            )

    def set_node(self, name: str, ready: str = "True", allocatable: int = 8, version: str = "1") -> None:
        self.nodes.put(
            {
                "metadata": {"name": name, "uid": name, "resourceVersion": version, "labels": {"pool": "h100"}},
                "spec": {},
                "status": {
                    "capacity": {"nvidia.com/gpu": "8"},
                    "allocatable": {"nvidia.com/gpu": str(allocatable)},
                    "conditions": [{"type": "Ready", "status": ready}],
                },
            }
        )

    async def list(self, kind: Kind, *_: Any, field_selector: str = "", **__: Any) -> Listing:
        if kind is NODE:
            name = field_selector.removeprefix("metadata.name=")
            self.asked_for.append(name)
            return Listing([{"metadata": {"name": name}}] if name in self.existing else [])
        assert kind is LEASE
        if self.error is not None:
            raise self.error
        for name in self.renewing:
            self.counts[name] += 1
        return Listing(
            [
                {"metadata": {"name": name}, "spec": {"renewTime": str(count), "leaseDurationSeconds": 40}}
                for name, count in self.counts.items()
            ]
        )


class Watch:
    def __init__(self, cluster: Cluster) -> None:
        self.now = 1000.0
        self.reach: dict[str, bool] = {f"uid-{name}": True for name in cluster.renewing}
        self.woken: list[str] = []
        made_up: Any = cluster
        limits = Limits(late_after=12, silent_after=20, gpu_fault_hold=3, stable_after=300)
        self.watch = NodeWatch(
            made_up,
            made_up,
            lambda: self.reach,
            lambda key: self.woken.append(str(key)),
            lambda: self.now,
            lambda: self.now + 1_000_000,
            RULES,
            limits,
        )

    async def look(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            await self.watch.look()

    def contact(self, node: str) -> Contact:
        return self.watch.facts([node])[node].contact


async def test_a_node_that_falls_silent_wakes_its_deployment_twice_and_is_avoided() -> None:
    cluster = Cluster(3)
    watch = Watch(cluster)
    await watch.look(6)
    watch.woken.clear()
    cluster.renewing.discard("n0")
    watch.reach["uid-n0"] = False
    await watch.look(24)
    assert watch.contact("n0") is Contact.SILENT
    assert watch.woken == ["LLMDeployment ns/llama"] * 2, "late, then silent"
    assert watch.watch.why_avoided(NodeView("n0")) == "does not renew its Lease"
    assert watch.watch.why_avoided(NodeView("n1")) == ""
    cluster.renewing.add("n0")
    await watch.look(4)
    assert watch.contact("n0") is Contact.FRESH
    assert "was faulty (silent) and is avoided until" in watch.watch.why_avoided(NodeView("n0"))
    await watch.look(301)
    assert watch.watch.why_avoided(NodeView("n0")) == ""


async def test_a_node_is_heard_from_only_by_a_renewal_after_the_moment() -> None:
    cluster = Cluster(2)
    watch = Watch(cluster)
    await watch.look(6)
    cluster.renewing.discard("n0")
    lost_at = watch.now + 1_000_000
    assert not watch.watch.heard_since("n1", lost_at), "what is read now may have been written before"
    await watch.look(10)
    assert [watch.watch.heard_since(name, lost_at) for name in ("n0", "n1", "no-lease")] == [False, True, False]
    await watch.look(60)
    assert watch.watch.heard_since("no-lease", lost_at), "not for ever"
    cluster.error = Forbidden("no leases for Berth", verb="list", resource="leases")
    await watch.look(3)
    assert watch.watch.heard_since("n0", watch.now + 1_000_000), "nobody can tell"


async def test_lists_that_fail_make_nobody_silent() -> None:
    cluster = Cluster(3)
    watch = Watch(cluster)
    await watch.look(6)
    cluster.error = Transient("the API server is away")
    watch.reach = dict.fromkeys(watch.reach, False)
    await watch.look(120)
    assert {watch.contact(name) for name in cluster.counts} == {Contact.UNKNOWN}
    cluster.error = None
    cluster.renewing.clear()  # kubelets are late to come back
    await watch.look(10)
    assert Contact.SILENT not in {watch.contact(name) for name in cluster.counts}


async def test_without_the_right_to_read_leases_the_control_planes_word_counts() -> None:
    cluster = Cluster(3)
    cluster.error = Forbidden("no leases for Berth", verb="list", resource="leases")
    watch = Watch(cluster)
    cluster.set_node("n0", ready="Unknown", version="2")
    watch.reach["uid-n0"] = False
    await watch.look(3)
    assert watch.contact("n0") is Contact.SILENT
    assert watch.contact("n1") is Contact.FRESH
    assert watch.watch.frozen(["h100"]) == "", "the others are heard from"


@pytest.mark.parametrize("known", [True, False])
async def test_a_pool_is_frozen_while_nobody_is_heard_from_and_calm_for_a_while_after(known: bool) -> None:
    """Also one whose GPUPool somebody deleted while its groups run on."""
    cluster = Cluster(4)
    if not known:
        cluster.pools.store.put(("", "h100"), None)
    watch = Watch(cluster)
    await watch.look(6)
    everybody = set(cluster.renewing)
    cluster.renewing.clear()
    watch.reach = dict.fromkeys(watch.reach, False)
    await watch.look(30)
    assert watch.watch.frozen(["h100"])
    assert all(facts.frozen for facts in watch.watch.facts(cluster.counts).values())
    assert "GPUPool h100" in watch.woken
    cluster.renewing = everybody
    watch.reach = dict.fromkeys(watch.reach, True)
    await watch.look(10)
    assert watch.watch.frozen(["h100"]), "nodes come back one by one"
    await watch.look(30)
    assert watch.watch.frozen(["h100"]) == ""


async def test_absence_from_the_copy_is_asked_about_before_a_node_is_gone_and_only_once() -> None:
    cluster = Cluster(2)
    watch = Watch(cluster)
    await watch.look(2)
    cluster.nodes.store.put(("", "n0"), None)
    await watch.look(3)
    assert not watch.watch.facts(["n0"])["n0"].gone, "the copy lacks it, the server has it"
    cluster.existing.discard("n0")
    cluster.asked_for.clear()
    await watch.look(5)
    assert watch.watch.facts(["n0"])["n0"].gone
    assert cluster.asked_for == ["n0"]
    cluster.set_node("n0", version="9")
    await watch.look(1)
    assert not watch.watch.facts(["n0"])["n0"].gone


@pytest.mark.parametrize(("allocatable", "sick"), [(7, True), (0, False), (8, False)])
async def test_gpus_that_are_withdrawn_count_after_they_stayed_away(allocatable: int, sick: bool) -> None:
    cluster = Cluster(2)
    watch = Watch(cluster)
    await watch.look(2)
    cluster.set_node("n0", allocatable=allocatable, version="2")
    await watch.look(2)
    assert not watch.watch.facts(["n0"])["n0"].sick
    await watch.look(3)
    assert bool(watch.watch.facts(["n0"])["n0"].sick) == sick
    assert not watch.watch.facts(["n1"])["n1"].sick


async def test_a_restarted_berth_knows_bad_nodes_by_the_groups_that_failed_there() -> None:
    cluster = Cluster(2)
    watch = Watch(cluster)
    cluster.groups.put(
        {
            "metadata": {"name": "llama-g0-1", "namespace": "ns", "labels": {labels.LIFECYCLE: labels.FAILED}},
            "spec": {"members": 1},
            "status": {"evidence": {"cause": "GPUUnhealthy", "node": "n1", "observedAt": "1970-01-12T14:03:00Z"}},
        }
    )
    await watch.look(1)
    assert "was faulty (GPUUnhealthy)" in watch.watch.why_avoided(NodeView("n1"))
    assert watch.watch.why_avoided(NodeView("n0")) == ""
