"""The operator's own questions, asked of a real Triton server behind the launcher."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from berth.engine.contract import Exit
from berth.errors import Transient
from berth.serving.prober import TritonProber
from tests.integration.engine.pod import Pod
from tests.support.cluster import eventually

pytestmark = pytest.mark.triton


@pytest.fixture
async def prober() -> AsyncIterator[TritonProber]:
    prober = TritonProber(timeout_seconds=2.0)
    yield prober
    await prober.close()


async def test_token_in_flight_and_drain(pod: Pod, prober: TritonProber) -> None:
    pod.start().until_serving()
    await prober.token(pod.address)

    async def idle() -> bool:
        return (await prober.progress(pod.address)).in_flight == 0

    assert await eventually(idle), "the model writes its state four times a second"
    await prober.drain(pod.address)
    assert pod.state()["draining"] is True

    async def refuses() -> bool:
        return not pod.state()["accepting"]

    assert await eventually(refuses), "not at once, but soon"


async def test_a_canary_is_no_request_in_the_metrics(pod: Pod, prober: TritonProber) -> None:
    pod.start().until_serving()
    before = pod.state()["requests"]
    await prober.token(pod.address)
    assert pod.state()["requests"] == before


async def test_an_engine_that_hangs_gives_a_reason_and_not_a_token(pod: Pod, prober: TritonProber) -> None:
    pod.start("--hang-after=30", "--canary-every=600").until_serving()
    pod.fault(hang=True)
    with pytest.raises(Transient, match=f"no token from {pod.address}"):
        await prober.token(pod.address)
    assert pod.http("GET", "/v2/health/ready", port=8000)[0] == 200, "Triton itself notices nothing"


async def test_a_server_that_was_asked_for_tokens_stops_as_soon_as_it_is_told(pod: Pod, prober: TritonProber) -> None:
    """Less than Triton's own exit time-out of 20 s, which it would use up if a canary had left something behind."""
    pod.start("--exit-timeout=15").until_serving()
    for _ in range(200):
        await prober.token(pod.address)
    pod.signal(signal.SIGTERM)
    assert await asyncio.to_thread(pod.wait, 60) == Exit.STOPPED
    assert pod.message == "Stopped: asked to stop"


async def test_an_address_where_nobody_listens_is_told(prober: TritonProber) -> None:
    async def refused() -> bool:
        with pytest.raises(Transient, match=r"127\.77\.0\.9"):
            await prober.token("127.77.0.9")
        with pytest.raises(Transient, match=r"launcher of 127\.77\.0\.9 cannot be reached"):
            await prober.progress("127.77.0.9")
        return True

    assert await eventually(refused)
