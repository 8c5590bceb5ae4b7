"""What pods and reservations take, read from raw Kubernetes objects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.nodes import NodeView, Taint, Toleration, matches_terms, node_view
from berth.core.quantities import ceil_units, millicores, parse, show_bytes, show_cores
from berth.core.usage import Reservation, Usage, bound_pods, held_by, pod_request, usage_by_node

GPU = "nvidia.com/gpu"
GIB = 2**30


def container(gpus: int = 0, cpu: str = "0", memory: str = "0", **fields: Any) -> dict[str, Any]:
    return {"resources": {"requests": {GPU: str(gpus), "cpu": cpu, "memory": memory}}, **fields}


def pod(node: str | None, *containers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    metadata = {"uid": fields.pop("uid", f"uid-{id(containers)}"), **fields.pop("metadata", {})}
    return {
        "metadata": metadata,
        "spec": {"nodeName": node, "containers": list(containers), **fields.pop("spec", {})},
        "status": {"phase": "Running", **fields},
    }


def test_sums_what_bound_pods_ask_for() -> None:
    pods = [
        pod("a", container(4, "500m", "1Gi"), container(0, "1500m", "1Gi"), uid="1"),
        pod("a", container(2), uid="2"),
        pod(None, container(8), uid="3"),
    ]
    assert usage_by_node(bound_pods(pods, GPU)) == {"a": Usage(6, 2000, 2 * GIB)}


def test_a_terminating_pod_holds_its_gpus_until_it_is_gone_and_an_ended_one_nothing() -> None:
    pods = [
        pod("a", container(8), uid="1", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        pod("b", container(8), uid="2", phase="Failed"),
        pod("c", container(8), uid="3", phase="Succeeded"),
    ]
    assert usage_by_node(bound_pods(pods, GPU)) == {"a": Usage(gpus=8)}


def test_a_pod_seen_twice_counts_once() -> None:
    twice = [pod("a", container(4), uid="1"), pod("a", container(4), uid="1")]
    assert usage_by_node(bound_pods(twice, GPU)) == {"a": Usage(gpus=4)}


@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        ({"containers": [container(cpu="1")], "initContainers": [container(cpu="3")]}, 3000),
        ({"containers": [container(cpu="2")], "initContainers": [container(cpu="1"), container(cpu="1500m")]}, 2000),
        (
            {
                "containers": [container(cpu="1")],
                "initContainers": [container(cpu="1", restartPolicy="Always"), container(cpu="1500m")],
            },
            2500,
        ),
        (
            {
                "containers": [container(cpu="2")],
                "initContainers": [container(cpu="1500m"), container(cpu="1", restartPolicy="Always")],
            },
            3000,
        ),
        ({"containers": [container(cpu="1")], "overhead": {"cpu": "250m"}}, 1250),
        ({"containers": [container(cpu="1")], "resources": {"requests": {"cpu": "4"}}}, 4000),
        ({"containers": [{"resources": {"limits": {"cpu": "2"}}}]}, 2000),
        ({"containers": [{}]}, 0),
    ],
)
def test_follows_the_schedulers_rule_for_effective_requests(spec: dict[str, Any], cpu: int) -> None:
    assert pod_request(spec, GPU).cpu_millicores == cpu


def member(owner: str, index: int, node: str | None, uid: str) -> dict[str, Any]:
    metadata = {
        "ownerReferences": [{"uid": "other"}, {"uid": owner, "controller": True}],
        "labels": {"berth.dev/member-index": str(index)},
    }
    return pod(node, container(8), uid=uid, metadata=metadata)


def test_a_reservation_holds_the_planned_nodes_of_members_that_are_not_bound_yet() -> None:
    reservation = Reservation("rg", ("a", "b"), Usage(gpus=8))
    assert usage_by_node([], [reservation]) == {"a": Usage(gpus=8), "b": Usage(gpus=8)}
    half = bound_pods([member("rg", 0, "a", "1"), member("rg", 1, None, "2")], GPU)
    assert usage_by_node(half, [reservation]) == {"a": Usage(gpus=8), "b": Usage(gpus=8)}
    foreign = bound_pods([member("someone", 0, "a", "1")], GPU)
    assert usage_by_node(foreign, [reservation])["a"] == Usage(gpus=16)


def test_what_dying_members_hold_is_found_by_their_owner() -> None:
    pods = bound_pods([member("old", 0, "a", "1"), member("new", 0, "b", "2")], GPU)
    assert held_by(["old"], pods) == {"a": Usage(gpus=8)}


# --- nodes ------------------------------------------------------------------------------------------------------------
def raw_node(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": {"zone": "a"}},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}], "unschedulable": True},
        "status": {
            "capacity": {GPU: "8"},
            "allocatable": {GPU: "7", "cpu": "191500m", "memory": "2113341300Ki"},
            "conditions": [{"type": "Ready", "status": "True"}],
            **status,
        },
    }


def test_reads_a_node() -> None:
    assert node_view(raw_node(), GPU) == NodeView(
        name="n",
        labels={"zone": "a"},
        taints=(Taint("k", "", "NoSchedule"),),
        unschedulable=True,
        ready=True,
        gpu_capacity=8,
        gpu_allocatable=7,
        cpu_millicores=191_500,
        memory_bytes=2_113_341_300 * 1024,
        conditions={"Ready": "True"},
    )


@pytest.mark.parametrize(
    "raw",
    [{}, {"metadata": None, "spec": None, "status": None}, {"status": {"conditions": [7]}, "spec": {"taints": 1}}],
)
def test_silence_is_neither_ready_nor_capacity(raw: dict[str, Any]) -> None:
    node = node_view(raw, GPU)
    assert not node.ready
    assert (node.gpu_allocatable, node.cpu_millicores, node.memory_bytes) == (0, 0, 0)


def test_an_unreadable_quantity_names_node_and_resource() -> None:
    with pytest.raises(ValueError, match="node n, resource memory: 'lots' is not a Kubernetes quantity"):
        node_view(raw_node(allocatable={"memory": "lots"}), GPU)


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "value": "w"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "j", "operator": "Exists"}, False),
        ({}, False),
    ],
)
def test_tolerations_follow_kubernetes(toleration: dict[str, str], covers: bool) -> None:
    assert Toleration.from_manifest(toleration).covers(Taint("k", "v", "NoSchedule")) is covers


@pytest.mark.parametrize(
    ("term", "matches"),
    [
        ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}, True),
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}, False),
        ({"matchExpressions": [{"key": "rack", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "slot", "operator": "Gt", "values": ["3"]}]}, True),
        ({"matchExpressions": [{"key": "slot", "operator": "Lt", "values": ["3"]}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["3"]}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "Like", "values": ["a"]}]}, False),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}, True),
        ({}, False),
    ],
)
def test_node_selector_terms_follow_kubernetes(term: dict[str, Any], matches: bool) -> None:
    node = NodeView(name="n", labels={"zone": "a", "slot": "5"})
    assert matches_terms(node, [term]) is matches


# --- quantities -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("1Ki", 1024), ("1.5Gi", 3 * 2**29), ("2e3", 2000), ("1E", 10**18), ("1E2", 100), (".5k", 500), (3, 3)],
)
def test_parses_quantities(text: str | int, value: int) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("text", ["", "x", "1 Gi", "1KiB", "0x10", "1e", "--1", "1e9999", "NaN", "١"])
def test_refuses_what_is_not_a_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a Kubernetes quantity"):
        parse(text)


def test_rounds_requests_up() -> None:
    assert millicores("1500u") == 2
    assert millicores("250m") == 250
    assert ceil_units("100m") == 1


@given(st.integers(0, 10**15), st.sampled_from(["", "k", "M", "Ki", "Mi", "m"]))
def test_quantities_are_exact(number: int, suffix: str) -> None:
    unit = {"": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20}
    if suffix == "m":
        assert millicores(f"{number}m") == number
    else:
        assert ceil_units(f"{number}{suffix}") == number * unit[suffix]


def test_shows_amounts_as_people_read_them() -> None:
    assert (show_bytes(3 * 2**29), show_bytes(2**41), show_bytes(5)) == ("1.5 GiB", "2.0 TiB", "5 B")
    assert (show_cores(1000), show_cores(7500)) == ("1 core", "7.5 cores")
