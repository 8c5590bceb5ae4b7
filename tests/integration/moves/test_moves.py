"""Moves on a real control plane: what gets requests at every moment, how they end, and what can go wrong."""

from __future__ import annotations

import pytest

from tests.integration.moves.conftest import Stage, least_routed, most_alive
from tests.support.berth import Clock, RunningBerth, ScriptedLeaders
from tests.support.cluster import eventually


async def test_the_new_groups_get_requests_together_and_the_old_ones_stay_until_the_verdict(stage: Stage) -> None:
    before = len(await stage.serving_pools())
    async with stage.site.recording("pods") as changes:
        await stage.ask(f"move {stage.there} bf16 tp1 x2")
        current = await stage.until_phase("Judging")
        assert await stage.serving_pools() == [stage.there] * 2
        old = [each for each in await stage.site.groups() if each["spec"]["allocation"]["pool"] == stage.here]
        assert {each["metadata"]["labels"]["berth.dev/role"] for each in old} == {"outgoing"}
        assert all("deletionTimestamp" not in pod["metadata"] for pod in await stage.site.pods())
    assert least_routed(changes, before) >= 2
    status = (await stage.site.get())["status"]
    assert [each["pool"] for each in status["placement"]["allocations"]] == [stage.there, stage.here]
    assert (current["from"][0]["pool"], current["to"][0]["pool"]) == (stage.here, stage.there)
    assert status["summary"]["message"].startswith(f"Moving to {stage.there} bf16")
    assert (await stage.reply())["result"] == "Done"


async def test_without_a_verdict_the_deadline_keeps_what_serves(stage: Stage, clock: Clock) -> None:
    await stage.ask(f"move {stage.there} bf16 tp1 x2")
    await stage.until_phase("Judging")
    clock.ahead += 1300
    await stage.site.patch({"metadata": {"annotations": {"wake": "up"}}})
    ended = await stage.until_ended()
    assert ended["result"] == "Completed"
    found = await stage.site.settled()
    assert {each["pool"] for each in found["status"]["groups"]} == {stage.there}
    assert [each["pool"] for each in found["status"]["placement"]["allocations"]] == [stage.there]
    assert found["status"]["summary"]["placement"].startswith(f"{stage.there} bf16 tp1")

    async def told() -> bool:
        return [each["reason"] for each in await stage.site.events()].count("MoveCompleted") == 1

    await eventually(told)  # an Event comes after the status it tells of


async def test_a_move_taken_back_gives_the_old_groups_their_requests_first(
    stage: Stage, leaders: ScriptedLeaders
) -> None:
    await stage.ask(f"move {stage.there} bf16 tp1 x2")
    await stage.until_phase("Judging")

    async def drained() -> bool:
        return len(leaders.draining) >= 2

    await eventually(drained)
    async with stage.site.recording("pods") as changes:
        await stage.ask("rollback")
        ended = await stage.until_ended()
        assert ended["result"] == "RolledBack"

        async def only_the_old_ones() -> bool:
            assert {each["spec"]["allocation"]["pool"] for each in await stage.site.groups()} == {stage.here}
            return True

        await eventually(only_the_old_ones)
    assert least_routed(changes, 2) >= 2
    assert set(await stage.serving_pools()) == {stage.here}
    assert not leaders.draining & {pod["status"]["podIP"] for pod in await stage.site.pods()}
    await stage.site.settled()


async def test_a_move_without_room_for_all_its_groups_is_abandoned_at_the_deadline_and_said(
    stage: Stage, berth: RunningBerth, clock: Clock
) -> None:
    site = stage.site
    await site.cluster.create(site.deployment(stage.there, "tenant", tp=8, groups=1))
    await site.settled("tenant")
    serving = await site.serving()
    async with site.recording("pods") as changes:
        await stage.ask(f"move {stage.there} bf16 tp8 x2")

        async def waits() -> bool:
            """One of the two groups has the last free node and the condition says what the other one lacks."""
            held = [g for g in await site.groups("llama") if g["spec"]["allocation"]["pool"] == stage.there]
            assert len(held) == 1, held
            progressing = await site.condition("Progressing")
            assert (progressing["status"], progressing["reason"]) == ("True", "Moving"), progressing
            assert "Reserving: needs 1 node x 8 GPUs, none free" in progressing["message"], progressing
            return True

        await eventually(waits)
        assert (await stage.until_phase("Reserving"))["to"][0]["pool"] == stage.there
        clock.ahead += 1300
        await site.patch({"metadata": {"annotations": {"wake": "up"}}})
        ended = await stage.until_ended()
        await site.settled()
    assert ended["result"] == "Abandoned"
    assert "no capacity by the deadline: needs 1 node x 8 GPUs" in ended["reason"]
    assert await site.serving() == serving
    of_those = [each for each in changes if each.name in serving]
    assert all(each.object["metadata"]["labels"].get("berth.dev/serving") == "true" for each in of_those)

    async def told() -> bool:
        found = [each for each in await site.events() if each["reason"] == "MoveAbandoned"]
        assert len(found) == 1, found
        assert (found[0]["type"], "no capacity by the deadline" in found[0]["note"]) == ("Warning", True), found
        return True

    await eventually(told)
    counted = {"cause": "Requested", "result": "Abandoned"}
    assert berth.app.metrics.registry.get_sample_value("berth_moves_total", counted) == 1
    assert (await site.condition("Progressing"))["reason"] == "Settled"

    async def given_back() -> bool:
        free = (await site.cluster.get("gpupools", stage.there))["status"]["gpus"]["free"]
        assert free == 8, free
        return True

    await eventually(given_back)


async def test_groups_that_never_serve_end_it_and_nobody_notices_or_asks_again_when_status_is_lost(
    stage: Stage, leaders: ScriptedLeaders, clock: Clock
) -> None:
    serving = await stage.site.serving()
    known = {pod["status"]["podIP"] for pod in await stage.site.pods()}

    async def silenced() -> bool:
        fresh = {pod["status"].get("podIP") for pod in await stage.site.pods()} - known - {None}
        leaders.silent |= fresh  # type: ignore[arg-type]
        return len(fresh) == 2

    leaders.silent.add("*")
    await stage.ask(f"move {stage.there} bf16 tp1 x2")
    await eventually(silenced)
    leaders.silent.discard("*")
    await stage.until_phase("WarmingUp")
    clock.ahead += 1300
    await stage.site.patch({"metadata": {"annotations": {"wake": "up"}}})
    ended = await stage.until_ended()
    assert ended["result"] == "Abandoned"
    assert "did not serve by the deadline" in ended["reason"]
    assert await stage.site.serving() == serving
    await stage.site.settled()
    before = await stage.reply()

    async def borne_by_the_groups() -> bool:
        found = [each["metadata"]["annotations"].get("berth.dev/ended-moves", "") for each in await stage.site.groups()]
        assert all(ended["id"] in each for each in found), found
        return True

    await eventually(borne_by_the_groups)
    await stage.site.wipe_status()

    async def remembered() -> bool:
        """In fewer words."""
        moves = await stage.moves()
        assert moves.get("recent"), moves
        found = moves["recent"][0]
        assert ended["reason"].startswith(found["reason"]), moves
        assert {**found, "reason": ""} == {**ended, "reason": ""}, moves
        assert "current" not in moves
        assert await stage.reply() == before
        return True

    await eventually(remembered)
    assert {each["spec"]["allocation"]["pool"] for each in await stage.site.groups()} == {stage.here}


async def test_a_spec_that_changes_on_the_way_ends_the_move(stage: Stage, leaders: ScriptedLeaders) -> None:
    leaders.silent.add("*")
    await stage.ask(f"move {stage.there} bf16 tp1 x2")
    await stage.until_phase("WarmingUp", "Starting")
    await stage.site.patch({"spec": {"objectives": {"timePerOutputToken": {"p95": "60ms"}}}})
    ended = await stage.until_ended()
    leaders.silent.discard("*")
    assert (ended["result"], "the spec changed" in ended["reason"]) == ("Abandoned", True)
    await stage.site.settled()


@pytest.mark.parametrize("phase", ["Reserving", "WarmingUp", "Judging", "Draining", "Reverting"])
async def test_in_any_phase_a_wiped_status_loses_nothing_and_a_deleted_deployment_leaves_nothing(
    stage: Stage, phase: str
) -> None:
    current = await stage.hold(phase)
    pools = await stage.serving_pools()
    await stage.site.wipe_status()
    again = await stage.until_phase(phase)
    assert (again["id"], again["from"], again["to"]) == (current["id"], current["from"], current["to"])
    assert await stage.serving_pools() == pools
    await stage.site.cluster.delete("llmdeployments", "llama", stage.site.namespace)

    async def nothing_left() -> bool:
        kinds = ("replicagroups", "pods", "services")
        left = [each for kind in kinds for each in await stage.site.cluster.list(kind, stage.site.namespace)]
        assert not left, [each["metadata"]["name"] for each in left]
        return True

    await eventually(nothing_left)


async def test_without_surge_groups_change_places_one_by_one_and_back(stage: Stage) -> None:
    site = stage.site
    one_less = {"surge": "Never", "maxUnavailable": 1}
    await site.patch({"spec": {"update": one_less, "replicaGroups": {"minAvailable": 1}, "scaling": {"min": 2}}})
    await site.settled()
    assert len(await stage.serving_pools()) == 2
    async with site.recording("pods") as changes:
        await stage.ask(f"move {stage.there} bf16 tp1 x2")
        await stage.until_phase("Judging")
        assert await stage.serving_pools() == [stage.there] * 2
        await site.wipe_status()
        await stage.until_phase("Judging")
        await stage.ask("rollback")
        ended = await stage.until_ended()
        await site.settled()
    assert ended["result"] == "RolledBack"
    assert await stage.serving_pools() == [stage.here] * 2
    assert least_routed(changes, 1) == 1
    assert most_alive(changes) == 2


async def test_too_few_of_the_new_groups_bring_the_old_ones_back(stage: Stage) -> None:
    await stage.ask(f"move {stage.there} bf16 tp1 x2")
    await stage.until_phase("Judging")
    fresh = [p for p in await stage.site.pods() if p["metadata"]["labels"]["berth.dev/pool"] == stage.there]
    await stage.site.cluster.delete("pods", fresh[0]["metadata"]["name"], stage.site.namespace, grace=0)
    ended = await stage.until_ended()
    assert (ended["result"], "needed groups serve" in ended["reason"]) == ("Abandoned", True)
    await stage.site.settled()
    assert set(await stage.serving_pools()) == {stage.here}


async def test_requests_that_cannot_be_carried_out_are_refused_with_the_reason(stage: Stage) -> None:
    for request, words in {
        "move nowhere bf16 tp1": "there is no pool nowhere",
        f"move {stage.there} fp8 tp1": "there is no variant fp8",
        "dance": "is no request",
        f"move {stage.there} bf16 tp0": "does not say how a copy is split",
        "failover g7": "there is no group g7",
        "rollback": "no move is under way",
    }.items():
        await stage.ask(request)

        async def refused(request: str = request, words: str = words) -> bool:
            reply = await stage.reply()
            assert (reply.get("text"), reply.get("result")) == (request, "Refused"), reply
            assert words in reply["message"], reply
            return True

        await eventually(refused)
    assert set(await stage.serving_pools()) == {stage.here}


async def test_a_group_that_a_person_gives_up_is_replaced_once(stage: Stage) -> None:
    await stage.ask("failover g0 @1")

    async def replaced() -> bool:
        found = {(g["spec"]["group"], g["spec"]["incarnation"]) for g in await stage.site.groups()}
        assert ("g0", 2) in found, found
        assert (await stage.reply()).get("result") == "Done"  # the same pass says it, after it made the next life
        return True

    await eventually(replaced)
    await stage.site.settled()
    lost = next(
        each for each in await stage.site.groups() if each["spec"]["incarnation"] == 1 and each["spec"]["group"] == "g0"
    )
    assert lost["status"]["evidence"]["cause"] == "Requested"
    assert ("g0", 3) not in {(g["spec"]["group"], g["spec"]["incarnation"]) for g in await stage.site.groups()}
