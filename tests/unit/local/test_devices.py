"""GPUs have one holder, and sick ones are not given out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.kube.kinds import Object
from berth.local.kubelet.devices import Devices, Rejected, requested
from tests.unit.local.kubelet_api import pod


def wants(gpus: int, uid: str = "a") -> Object:
    made = pod({"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}})
    made["metadata"]["uid"] = uid
    return made


def test_more_than_there_are_is_rejected_in_the_kubelets_words() -> None:
    devices = Devices(4)
    devices.allocate(wants(3, "a"))
    with pytest.raises(Rejected, match=r"nvidia\.com/gpu\. Requested: 2, Available: 1, which is unexpected"):
        devices.allocate(wants(2, "b"))
    devices.release("a")
    devices.allocate(wants(4, "b"))


def test_sick_gpus_stay_with_their_holder_and_go_to_nobody_else() -> None:
    devices = Devices(4)
    devices.allocate(wants(2, "a"))
    devices.set_sick(1)
    assert (devices.capacity, devices.allocatable) == (4, 3)
    assert [each["health"] for each in devices.health("a")] == ["Unhealthy", "Healthy"]
    devices.release("a")
    with pytest.raises(Rejected):
        devices.allocate(wants(4, "b"))
    devices.set_sick(0)
    devices.allocate(wants(4, "b"))


def test_all_containers_count() -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": "2"}}}
    assert requested(pod(limits, {}, limits)) == 4


def test_no_more_can_be_sick_than_there_are() -> None:
    with pytest.raises(ValueError, match="3 unhealthy GPUs: the node has 2"):
        Devices(2).set_sick(3)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_whatever_happens_nobody_gets_a_gpu_that_another_holds(steps: list[tuple[int, bool]]) -> None:
    devices, held = Devices(8), {}
    for number, (gpus, leaves) in enumerate(steps):
        uid = str(number)
        try:
            devices.allocate(wants(gpus, uid))
            held[uid] = gpus
        except Rejected:
            assert sum(held.values()) + gpus > 8
        if leaves and held:
            gone = next(iter(held))
            devices.release(gone)
            del held[gone]
        assert {uid: len(devices.health(uid)) for uid in held} == held
