"""What keeps a group from starting, as status tells it."""

from __future__ import annotations

from typing import Any

from berth import labels
from tests.unit.core.simulation import Simulation, deployment


def degraded(simulation: Simulation) -> tuple[str, str]:
    found: list[dict[str, Any]] = simulation.stored["status"]["conditions"]
    condition = next(each for each in found if each["type"] == "Degraded")
    return condition["reason"], condition["message"]


def test_a_container_that_cannot_start_is_told_in_the_kubelets_words_from_when_they_are_read_on() -> None:
    simulation = Simulation(deployment(groups=1))
    simulation.silent = {"*"}
    for _ in range(4):
        simulation.run_pass()
        simulation.kubelets()
    (pod,), (group,) = simulation.pods.values(), simulation.groups.values()
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": waiting}
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    group["metadata"]["labels"][labels.LIFECYCLE] = labels.RESERVED  # as in a list that is older than the pod's
    simulation.run_pass()
    assert degraded(simulation)[0] == "Healthy"
    simulation.run_pass()
    words = f'g0: {pod["metadata"]["name"]}: CreateContainerConfigError: secret "hf" not found'
    assert degraded(simulation) == ("ContainerWaiting", words)
