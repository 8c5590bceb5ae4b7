"""A spec that is edited while a move is under way: the move ends first, and what was asked for is not forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from berth.core.placement.decide import decide, kept
from berth.core.placement.evaluate import Memory
from berth.core.plan import Plan
from berth.core.requests import NOTHING
from tests.unit.core.simulation import POOL, Simulation
from tests.unit.moves.test_underway import ROLLBACK, Moving, hold, until
from tests.unit.placement.cases import supply

MEMORY = Memory()
SUPPLIES = (supply("h100", price="9.00"), supply("a100", "A100-SXM-40", "5.00"), supply("third", "A100-SXM-80", "1.00"))


class Deciding(Moving):
    """As soon as it `decides` the placement is the planner's, and there is a third pool."""

    decides = False

    def __init__(self) -> None:
        super().__init__()
        self.pools["third"] = {**POOL, "metadata": {"name": "third"}, "spec": {**POOL["spec"], "gpu": "A100-SXM-80"}}
        self.nodes |= {"third-0": 8, "third-1": 8}

    def _nodes_of(self, pool: str) -> set[str]:
        third = {name for name in self.nodes if name.startswith("third")}
        return third if pool == "third" else super()._nodes_of(pool) - third

    def pools_in_use(self) -> set[str]:
        return {each["spec"]["allocation"]["pool"] for each in self.groups.values()}

    def run_pass(self, cut: int | None = None) -> Plan:
        if not self.decides:
            return super().run_pass(cut)
        snapshot = self.snapshot()
        self.decision = kept(snapshot) or decide(snapshot, SUPPLIES, MEMORY)
        self.wish, self.rollback = ROLLBACK if self.rollback else NOTHING, False
        return Simulation.run_pass(self, cut)


def pool(spec: dict[str, Any]) -> None:
    spec["placement"]["pools"] = ["third"]


def pool_and_variant(spec: dict[str, Any]) -> None:
    pool(spec)
    spec["model"]["variants"][0]["name"] = "renamed"


def pool_and_split(spec: dict[str, Any]) -> None:
    """Neither of the two placements is possible any more."""
    pool(spec)
    spec["model"]["variants"][0] |= {"tensorParallel": 1, "pipelineParallel": 1}


@pytest.mark.parametrize(
    ("phase", "edit"),
    [
        ("WarmingUp", pool),
        ("Judging", pool),
        ("Draining", pool),
        ("Reverting", pool),
        ("WarmingUp", pool_and_variant),
        ("Reverting", pool_and_variant),
        ("Judging", pool_and_split),
        ("Reverting", pool_and_split),
    ],
)
def test_what_is_asked_for_in_the_middle_of_a_move_is_done_after_it(phase: str, edit: Any) -> None:
    simulation = Deciding()
    hold(simulation, phase)
    simulation.decides, simulation.busy = True, False
    edit(simulation.stored["spec"])
    simulation.stored["metadata"]["generation"] += 1
    until(simulation, lambda: len(simulation.recent()) == 1 and simulation.pools_in_use() == {"third"}, steps=120)
    assert simulation.served() == 2
    placement = simulation.stored["status"]["placement"]
    assert [each["pool"] for each in placement["allocations"]] == ["third"]
    assert simulation.roles() == {""}
