"""Which reports about GPUs concern which pods."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.faults import DEFAULT_CONDITIONS, DEFAULT_TAINTS, DeviceUse, FaultRules, device_use, sick_pods
from berth.core.nodes import NodeView, Taint
from berth.settings import InvalidSettings, Settings

RULES = FaultRules.parse(DEFAULT_CONDITIONS, DEFAULT_TAINTS)


def node(allocatable: int = 8, **more: Any) -> NodeView:
    return NodeView("n", gpu_capacity=8, gpu_allocatable=allocatable, **more)


def pod_status(*devices: tuple[str, str]) -> dict[str, Any]:
    resources = [{"resourceID": name, "health": health} for name, health in devices]
    status = [{"name": "nvidia.com/gpu", "resources": resources}]
    return {"metadata": {"uid": "a"}, "status": {"containerStatuses": [{"allocatedResourcesStatus": status}]}}


def test_only_the_pod_that_holds_the_sick_gpu_is_sick() -> None:
    pods = [
        device_use(pod_status(("gpu-0", "Healthy"), ("gpu-1", "Unhealthy")), 2),
        DeviceUse("b", 2, reported=True),
    ]
    assert sick_pods(node(7), pods, RULES) == {"a": "GPU gpu-1 of node n is unhealthy"}


def test_a_device_plugin_that_is_away_makes_nobody_sick() -> None:
    told = device_use(pod_status(("gpu-0", "Unknown")), 1)
    assert sick_pods(node(0), [told, DeviceUse("b", 4, reported=False)], RULES) == {}


def test_where_nobody_says_which_gpu_it_is_every_pod_that_may_hold_it_counts() -> None:
    pods = [DeviceUse("a", 4, reported=False), DeviceUse("b", 4, reported=False)]
    words = "node n offers 7 of 8 GPUs, 8 are in use"
    assert sick_pods(node(7), pods, RULES) == {"a": words, "b": words}
    assert sick_pods(node(7), pods[:1], RULES) == {}, "a sick GPU that nobody holds hurts nobody"


@pytest.mark.parametrize(
    ("conditions", "reasons", "sick"),
    [
        ({"GPUMissing": "True"}, {"GPUMissing": "GPUMissing"}, True),
        ({"GPUMissing": "False"}, {}, False),
        ({"GPUMissing": "Unknown"}, {}, False),
        ({"AcceleratedHardwareReady": "False"}, {"AcceleratedHardwareReady": "NvidiaXID79Error"}, True),
        ({"AcceleratedHardwareReady": "False"}, {"AcceleratedHardwareReady": "DCGMError"}, False),
        ({"AcceleratedHardwareReady": "True"}, {}, False),
        ({"GpuMemWatch": "True"}, {}, True),
        ({"MemoryPressure": "True", "Ready": "False"}, {}, False),
    ],
)
def test_node_conditions_of_the_list_are_faults(
    conditions: dict[str, str], reasons: dict[str, str], sick: bool
) -> None:
    view = node(conditions=conditions, condition_reasons=reasons)
    assert bool(sick_pods(view, [DeviceUse("a", 1, reported=True)], RULES)) == sick


def test_taints_of_the_list_are_faults_whatever_their_effect() -> None:
    view = node(taints=(Taint("nvidia.com/gpu-xid-error", "true", "PreferNoSchedule"),))
    assert RULES.fault_of(view) == "taint nvidia.com/gpu-xid-error=true:PreferNoSchedule"
    assert not RULES.fault_of(node(taints=(Taint("nvidia.com/gpu", "", "NoSchedule"),)))


@pytest.mark.parametrize(
    "conditions", ["GPUMissing", "GPUMissing=true", "=True", "A=True/", "A=True/Reason", "A=True/!"]
)
def test_a_rule_that_cannot_be_read_stops_the_operator_with_its_words(conditions: str) -> None:
    with pytest.raises(InvalidSettings, match="BERTH_GPU_FAULT_CONDITIONS"):
        Settings.from_environment({"BERTH_GPU_FAULT_CONDITIONS": conditions})


def test_a_list_of_ones_own_replaces_the_defaults() -> None:
    settings = Settings.from_environment({"BERTH_GPU_FAULT_CONDITIONS": "Mine=True", "BERTH_GPU_FAULT_TAINTS": "a, b"})
    assert settings.fault_rules.taints == {"a", "b"}
    assert [rule.type for rule in settings.fault_rules.conditions] == ["Mine"]


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.just("containerStatuses"), ODD))
def test_nothing_odd_in_a_status_is_a_sick_gpu_or_an_error(status: dict[str, Any]) -> None:
    assert device_use({"metadata": {}, "status": status}, 1).unhealthy == ()
