"""Killed, told to stop, frozen, cut off: one of two real processes goes on, and only one at a time writes."""

from __future__ import annotations

import json
import signal

from tests.integration.replicas.conftest import Installation, Replica
from tests.support.cluster import eventually

LONG = {"lease_duration": 200, "lease_renew_deadline": 150}
"""Nobody waits for such a Lease to run out within the limit of a test."""


def effects(replica: Replica) -> list[tuple[str, str]]:
    """What a replica has changed for good, the Lease and Events left out."""
    return [
        (call.verb, call.name) for call in replica.proxy.writes if call.resource not in ("leases", "events")
    ]  # fmt: skip


async def test_a_standby_writes_nothing(installation: Installation) -> None:
    leader, standby = await installation.pair()
    await installation.create("a")
    await eventually(lambda: installation.judged("a"))
    assert effects(leader) == [("patch", "a")]
    assert effects(standby) == []
    assert not await standby.leads()


async def test_a_killed_leader_is_followed(installation: Installation) -> None:
    leader, standby = await installation.pair()
    leader.send(signal.SIGKILL)
    await leader.ended()
    await installation.create("after")
    await eventually(lambda: installation.judged("after"))
    assert await standby.leads()
    assert (await installation.lease())["leaseTransitions"] == 1


async def test_a_leader_that_is_told_to_stop_hands_over_before_its_lease_runs_out(installation: Installation) -> None:
    leader, standby = await installation.pair(**LONG)
    leader.send(signal.SIGTERM)
    assert await leader.ended() == 0, leader.log.read_text()
    await eventually(standby.leads)
    await installation.create("after")
    await eventually(lambda: installation.judged("after"))


async def test_a_standby_that_is_told_to_stop_ends_as_well(installation: Installation) -> None:
    leader, standby = await installation.pair()
    standby.send(signal.SIGTERM)
    assert await standby.ended() == 0, standby.log.read_text()
    assert await leader.leads()


async def test_a_frozen_leader_changes_nothing_once_it_wakes(installation: Installation) -> None:
    """While it was frozen its sockets filled with news that it would have acted on."""
    leader, standby = await installation.pair()
    await installation.create("before")
    await eventually(lambda: installation.judged("before"))
    leader.send(signal.SIGSTOP)
    done = effects(leader)
    names = [f"meanwhile-{index}" for index in range(5)]
    for name in names:
        await installation.create(name)
    for name in names:
        await eventually(lambda name=name: installation.judged(name))
    taken = await installation.lease()
    leader.send(signal.SIGCONT)
    assert await leader.ended() != 0
    assert effects(leader) == done, "a leader past its deadline has written"
    assert (await installation.lease())["holderIdentity"] == taken["holderIdentity"]
    assert await standby.leads()
    last = [json.loads(line) for line in leader.log.read_text().splitlines() if line.startswith("{")]
    assert "Error:" in leader.log.read_text(), last[-3:]


async def test_a_leader_cut_off_ends_itself_and_the_other_goes_on(installation: Installation) -> None:
    leader, standby = await installation.pair()
    leader.proxy.partition()
    assert await leader.ended() != 0
    assert "past its deadline" in leader.log.read_text()
    await installation.create("after")
    await eventually(lambda: installation.judged("after"))
    assert await standby.leads()
