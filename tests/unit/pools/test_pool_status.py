"""What a GPUPool says of itself: membership, GPUs, fragmentation, overlap, and GPUs it cannot hand out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from berth.api.gpupool import GPUPool, parse_gpupool
from berth.api.llmdeployment import Limits
from berth.core.budgets import why_over_cost_limit, why_over_gpu_budget, why_over_gpu_limit
from berth.core.conditions import REASONS
from berth.core.nodes import NodeView, Taint
from berth.core.pools import (
    OVERLAP,
    PRODUCT_MISMATCH,
    UNSUPPORTED_ALLOCATION,
    PoolState,
    gpu_type_of,
    nodes_of,
    pool_status,
    why_namespace_not_allowed,
    why_not_usable,
)
from berth.core.usage import Usage

H100 = "NVIDIA-H100-80GB-HBM3"


def pool(name: str = "h100", **spec: Any) -> GPUPool:
    values = {
        "gpu": "H100-SXM-80",
        "nodeSelector": {"nvidia.com/gpu.product": H100},
        "resourceName": "nvidia.com/gpu",
        "gpusPerNode": 8,
        **spec,
    }
    return parse_gpupool({"metadata": {"name": name}, "spec": values}, known_fields_only=True)


def node(name: str, product: str | None = H100, gpus: int = 8, sick: int = 0, **fields: Any) -> NodeView:
    labels = {**({"nvidia.com/gpu.product": product} if product else {}), **fields.pop("labels", {})}
    return NodeView(name=name, labels=labels, gpu_capacity=gpus, gpu_allocatable=gpus - sick, **fields)


def condition(state: PoolState, kind: str) -> tuple[bool | None, str]:
    return next((c.status, c.message) for c in state.conditions if c.type == kind)


def unusable(one: GPUPool, nodes: Sequence[NodeView], *others: GPUPool) -> str | None:
    return why_not_usable(one, nodes_of(one, nodes), [(each, nodes_of(each, nodes)) for each in (one, *others)])


def test_counts_nodes_and_gpus() -> None:
    nodes = [node("a"), node("b", sick=1), node("c", unschedulable=True), node("d"), node("x", "Tesla-T4")]
    used = {"a": Usage(gpus=4), "b": Usage(gpus=7), "x": Usage(gpus=1)}
    state = pool_status(pool(), [pool()], nodes, used)
    assert state.status({}, 1, 0.0) == {
        "nodes": 4,
        "healthyNodes": 3,
        "gpus": {"capacity": 32, "allocatable": 31, "free": 12, "unhealthy": 1},
        "freePerNode": {"8": 1, "4": 1},
        "conditions": [
            {
                "type": kind,
                "status": "False",
                "reason": reason,
                "message": "",
                "observedGeneration": 1,
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            }
            for kind, reason in (
                (OVERLAP, "NoOverlap"),
                (PRODUCT_MISMATCH, "ProductsMatch"),
                (UNSUPPORTED_ALLOCATION, "DevicePlugin"),
            )
        ],
    }
    assert unusable(pool(), nodes) is None
    assert {c.reason for c in state.conditions} <= set(REASONS)


def test_the_status_is_valid_for_the_api_and_survives_a_round_trip() -> None:
    state = pool_status(pool(), [pool()], [node("a")], {})
    stored = state.status({}, 1, 0.0)
    parsed = parse_gpupool({"metadata": {"name": "h100"}, "spec": pool().model_dump()["spec"], "status": stored})
    assert parsed.status.free_per_node == {"8": 1}
    assert parsed.status.gpus is not None
    assert parsed.status.gpus.free == 8


def test_conditions_of_others_are_kept_and_times_move_only_with_the_status() -> None:
    frozen = {"type": "EvacuationsFrozen", "status": "True", "reason": "X", "lastTransitionTime": "then"}
    first = pool_status(pool(), [pool()], [node("a")], {}).status({"conditions": [frozen]}, 1, 0.0)
    again = pool_status(pool(), [pool()], [node("a")], {}).status(first, 2, 100.0)
    assert frozen in again["conditions"]
    times = {c["type"]: c["lastTransitionTime"] for c in again["conditions"]}
    assert times[OVERLAP] == "1970-01-01T00:00:00Z"


def test_a_pool_without_nodes_has_nothing_and_says_zero() -> None:
    state = pool_status(pool(), [pool()], [], {})
    assert (state.healthy_nodes, state.capacity, state.free, state.free_per_node) == (0, 0, 0, {})


@pytest.mark.parametrize(
    ("product", "labels", "reason"),
    [
        ("NVIDIA-H100-PCIe", {}, "is H100-PCIe-80, the pool's gpu is H100-SXM-80"),
        (f"{H100}-SHARED", {}, "is shared between pods"),
        (f"{H100}-MIG-1g.10gb", {}, "is partitioned"),
        (H100, {"nvidia.com/gpu.replicas": "4"}, "is shared between pods"),
        (H100, {"nvidia.com/mig-3g.40gb.count": "2"}, "is partitioned"),
        (H100, {"nvidia.com/vgpu.present": "true"}, "is a virtual GPU"),
        (H100, {"nvidia.com/gpu.memory": "40000"}, "has 39.1 GiB by label nvidia.com/gpu.memory, H100-SXM-80 has 79.6"),
        ("NVIDIA-Z9", {}, "is not a GPU type that Berth knows"),
    ],
)
def test_a_similar_gpu_is_not_the_same_gpu(product: str, labels: dict[str, str], reason: str) -> None:
    mine = pool(nodeSelector={"team": "llm"})
    nodes = [node("a", labels={"team": "llm"}), node("b", product, labels={"team": "llm", **labels})]
    assert [n.name for n in nodes_of(mine, nodes)] == ["a"]
    status, message = condition(pool_status(mine, [mine], nodes, {}), PRODUCT_MISMATCH)
    assert status is True
    assert reason in message


def test_nodes_without_a_product_label_are_taken_by_the_selector_alone() -> None:
    mine = pool(nodeSelector={"team": "llm"})
    assert [n.name for n in nodes_of(mine, [node("a", None, labels={"team": "llm"})])] == ["a"]
    assert gpu_type_of({}) is None


def test_overlap_makes_both_pools_unusable_and_names_the_nodes() -> None:
    all_of_it, part = pool(), pool("reserved", nodeSelector={"team": "llm"})
    nodes = [node("a", labels={"team": "llm"}), node("b")]
    for one, other in ((all_of_it, "reserved"), (part, "h100")):
        state = pool_status(one, [all_of_it, part], nodes, {})
        assert condition(state, OVERLAP) == (
            True,
            f"pool {other} also has a: nothing is planned in either until a nodeSelector is narrowed",
        )
        assert unusable(one, nodes, all_of_it, part) == condition(state, OVERLAP)[1]


def test_pools_of_different_resources_on_one_node_do_not_overlap() -> None:
    other = pool("other", resourceName="example.com/gpu")
    assert condition(pool_status(pool(), [pool(), other], [node("a")], {}), OVERLAP)[0] is False


def test_gpus_without_a_device_plugin_are_unknown_and_not_zero() -> None:
    labels = {"nvidia.com/gpu.count": "8"}
    without = [node("a", gpus=0, labels=labels)]
    state = pool_status(pool(), [pool()], without, {})
    assert state.status({}, 1, 0.0)["gpus"] == {}
    assert "freePerNode" not in state.status({}, 1, 0.0)
    assert "a offer no nvidia.com/gpu" in (unusable(pool(), without) or "")
    # One silent node of two is said, the other one can be used.
    state = pool_status(pool(), [pool()], [*without, node("b")], {})
    assert condition(state, UNSUPPORTED_ALLOCATION)[0] is True
    assert state.free == 8
    assert unusable(pool(), [*without, node("b")]) is None


def test_tolerations_of_the_pool_make_its_nodes_healthy() -> None:
    tainted = node("a", taints=(Taint("nvidia.com/gpu", "present", "NoSchedule"),))
    assert pool_status(pool(), [pool()], [tainted], {}).healthy_nodes == 0
    open_pool = pool(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}])
    assert pool_status(open_pool, [open_pool], [tainted], {}).free == 8


def test_a_budget_bounds_what_is_free() -> None:
    mine = pool(gpuBudget=10)
    state = pool_status(mine, [mine], [node("a"), node("b")], {"a": Usage(gpus=4)})
    assert state.free == 6
    assert why_over_gpu_budget(mine, 4, 6) is None
    assert why_over_gpu_budget(mine, 4, 7) == (
        "pool h100: 4 of gpuBudget 10 are in use, 7 more are wanted: raise gpuBudget or use another pool"
    )
    assert why_over_gpu_budget(pool(), 1000, 1000) is None


def test_only_allowed_namespaces_may_use_a_pool() -> None:
    mine = pool(allowedNamespaces={"names": ["prod"]})
    assert why_namespace_not_allowed(mine, "prod") is None
    assert why_namespace_not_allowed(pool(), "dev") is None
    assert why_namespace_not_allowed(mine, "dev") == (
        "pool h100 is not open to namespace dev: add it to allowedNamespaces.names of the GPUPool or use another pool"
    )


def test_limits_of_a_deployment() -> None:
    limits = Limits.model_validate({"gpus": 16, "costPerHour": "40"})
    assert why_over_gpu_limit(limits, 8, 8) is None
    assert why_over_gpu_limit(limits, 12, 8) == (
        "12 of objectives.limits.gpus 16 are in use, 8 more are wanted: raise the limit or plan for less"
    )
    assert why_over_cost_limit(limits, 40.0) is None
    assert why_over_cost_limit(limits, 41.5) == (
        "41.50 per hour is above objectives.limits.costPerHour 40: raise the limit or plan for less"
    )
    assert why_over_gpu_limit(Limits(), 10**6, 1) is None
    assert why_over_cost_limit(Limits(), 1e9) is None
