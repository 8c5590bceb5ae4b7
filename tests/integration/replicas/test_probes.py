"""Probes tell the truth: alive is not ready, and ready means that this process could lead now."""

from __future__ import annotations

from tests.integration.replicas.conftest import Installation
from tests.support.cluster import eventually
from tests.support.fault_proxy import Refuse


async def test_an_api_server_that_does_not_answer_at_the_start_is_waited_for(installation: Installation) -> None:
    """No crash loop: whole clusters start after an outage, and whoever restarts then starts last."""
    replica = await installation.start("early", cut_off=True)

    async def alive_but_not_ready() -> bool:
        answers = [await replica.page(path) for path in ("/healthz", "/readyz")]
        assert [status for status, _ in answers] == [200, 503], answers
        return True

    await eventually(alive_but_not_ready)
    assert "not yet listed: " in (await replica.page("/readyz"))[1]

    replica.proxy.heal()
    await eventually(replica.ready)
    await eventually(replica.leads)


async def test_an_api_server_that_refuses_at_the_start_is_asked_again(installation: Installation) -> None:
    replica = await installation.start("early")
    replica.proxy.inject(Refuse(503), resource="llmdeployments", times=2)
    await eventually(replica.ready)
    assert "waiting for the API server" in replica.log.read_text()


async def test_a_standby_with_old_copies_is_alive_and_not_ready(installation: Installation) -> None:
    _, standby = await installation.pair(api_timeout=1)
    standby.proxy.partition()

    async def stale() -> bool:
        status, words = await standby.page("/readyz")
        return status == 503 and "nothing heard for" in words

    await eventually(stale)
    assert (await standby.page("/healthz"))[0] == 200
    standby.proxy.heal()
    await eventually(standby.ready)


async def test_missing_definitions_are_said_and_end_the_process(installation: Installation) -> None:
    replica = await installation.start("lonely", cut_off=True, api_timeout=1)
    replica.proxy.inject(Refuse(404, "NotFound"), resource="llmdeployments")
    replica.proxy.heal()
    assert await replica.ended() != 0
    assert "is not installed: kubectl apply -f crds/" in replica.log.read_text()
