"""What is remembered of moves that ended: it outlives status, groups and old backups."""

from __future__ import annotations

import copy
import json

import pytest

from berth import labels
from berth.core.moves.identity import placement_hash
from berth.core.moves.memory import ended_ids, recall
from berth.core.steering.policy import past_of
from tests.unit.moves.test_underway import Moving, kill, settle, until, wipe


def test_that_a_move_was_taken_back_outlives_status_groups_and_old_backups() -> None:
    simulation = Moving()
    until(simulation, lambda: "outgoing" in simulation.roles() and len(simulation.draining) == 2)
    simulation.rollback = True
    settle(simulation)
    told = past_of(recall(simulation.snapshot()))
    assert (told.taken_back, len(told.ended)) == ({placement_hash(simulation.move.to)}, 1)
    backup = copy.deepcopy(simulation.stored["status"]["moves"])
    assert backup["recent"][0]["result"] == "RolledBack"

    wipe(simulation, 1)
    assert past_of(recall(simulation.snapshot())) == told
    simulation.step()
    assert simulation.stored["status"]["moves"]["recent"] == backup["recent"]

    kill(simulation, 0)
    settle(simulation)
    wipe(simulation, 1)
    kill(simulation, 1)
    settle(simulation)
    assert past_of(recall(simulation.snapshot())) == told, "groups made later remember it too"

    older = {"recent": [{"id": "m0", "result": "Completed", "finishedAt": "1970-01-01T00:00:01Z"}]}
    simulation.stored["status"]["moves"] = older
    assert [each["id"] for each in recall(simulation.snapshot())["recent"]] == ["m1", "m0"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recent": 5}', '{"recent": [{"result": "RolledBack"}]}', "null"])
def test_what_somebody_else_wrote_into_the_memory_of_moves_is_nothing(text: str) -> None:
    simulation = Moving()
    simulation.stored.setdefault("status", {})["moves"] = {"recent": [{"id": "m0"}]}
    for group in simulation.groups.values():
        group["metadata"].setdefault("annotations", {})[labels.ENDED_MOVES] = text
    simulation.step()
    assert ended_ids(simulation.snapshot()) == {"m0"}
    for group in simulation.groups.values():
        assert json.loads(group["metadata"]["annotations"][labels.ENDED_MOVES]) == {"recent": [{"id": "m0"}]}
