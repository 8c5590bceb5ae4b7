"""From one decision to the next on a simulated cluster: groups of two layouts, and what they carry together."""

from __future__ import annotations

from collections import Counter

import pytest

from berth.api.placement import Allocation
from berth.core.placement.decide import Decision
from tests.unit.core.simulation import Simulation, deployment

CARRIES = {1: 1.0, 2: 2.5, 4: 5.0}
"""Requests per second of a group by tensor parallelism."""
DEMAND = 5.0


def decision(tensor: int, groups: int) -> Decision:
    allocation = Allocation.model_validate(
        {"pool": "h100", "variant": "bf16", "tensorParallel": tensor, "groups": groups}
    )
    return Decision(allocation, groups_for_traffic=groups, status={"placement": {"specHash": "x"}})


class Automatic(Simulation):
    """A deployment that the planner decides on."""

    def __init__(self, first: Decision) -> None:
        stored = deployment()
        stored["spec"]["placement"] = {"mode": "Auto"}
        stored["spec"]["traffic"] = {
            "requestsPerSecond": "5",
            "inputTokens": {"mean": 600, "p95": 2000, "max": 6000},
            "outputTokens": {"mean": 200, "p95": 500, "maxRequested": 1024},
        }
        super().__init__(stored)
        self.decision = first

    @property
    def wanted(self) -> int:
        assert self.decision is not None
        assert self.decision.allocation is not None
        return self.decision.allocation.groups

    @property
    def needed(self) -> int:
        assert self.decision is not None
        return self.decision.groups_for_traffic

    def serving(self) -> Counter[int]:
        """Groups that get requests, by tensor parallelism."""
        serving = (group for group in self.groups.values() if self.serves(group))
        return Counter(int(group["spec"]["allocation"]["tensorParallel"]) for group in serving)

    def proceed(self, passes: int) -> float:
        """The least that was carried on the way."""
        least = self.carried()
        for _ in range(passes):
            self.kubelets()
            self.run_pass()
            least = min(least, self.carried())
        return least

    def carried(self) -> float:
        return sum(CARRIES[tensor] * count for tensor, count in self.serving().items())


@pytest.mark.parametrize(
    ("before", "after"), [((1, 5), (2, 2)), ((2, 2), (1, 5)), ((1, 5), (4, 1)), ((4, 1), (2, 2)), ((2, 3), (2, 2))]
)
def test_on_the_way_to_another_layout_the_traffic_is_carried(before: tuple[int, int], after: tuple[int, int]) -> None:
    simulation = Automatic(decision(*before))
    simulation.proceed(20)
    assert simulation.serving() == {before[0]: before[1]}

    simulation.decision = decision(*after)
    assert simulation.proceed(200) >= DEMAND
    assert simulation.serving() == {after[0]: after[1]}
    assert simulation.stored["status"]["placement"]["allocations"][0]["groups"] == after[1]
