"""How a pod ends: hang, crash, failed load, lost member, SIGTERM. Real Triton; nothing may be left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import tritonclient.grpc.aio as grpcclient

from berth.engine import contract
from berth.engine.contract import Exit
from berth.engine.launcher import REFUSE_AT_LEAST
from tests.integration.engine.client import ask
from tests.integration.engine.pod import Pod

pytestmark = pytest.mark.triton


async def test_a_hung_engine_ends_the_pod_although_triton_says_healthy(pod: Pod) -> None:
    pod.start("--hang-after=3").until_serving()
    stream = asyncio.create_task(ask(pod, "a", sampling_param_max_tokens=2000))
    await asyncio.to_thread(pod.until, lambda: pod.state()["running"] == 1)
    pod.fault(hang=True)
    frozen = time.monotonic()
    await asyncio.to_thread(pod.until, lambda: pod.state()["frozen_for"] > 1.5)
    health = ("/v2/health/live", "/v2/health/ready", "/v2/models/tensorrt_llm/ready")
    assert [pod.http("GET", path, port=contract.PORT_HTTP)[0] for path in health] == [200, 200, 200]
    assert await asyncio.to_thread(pod.wait, 10) == Exit.HANG
    assert time.monotonic() - frozen < 5
    assert pod.message.startswith("Hang: no progress for 3.")
    assert (await stream).error


def test_an_idle_engine_that_hangs_is_found_by_a_canary(pod: Pod) -> None:
    pod.start("--hang-after=1.5", "--canary-every=1").until_serving()
    pod.fault(hang=True)
    assert pod.wait(10) == Exit.HANG


async def test_a_slow_or_briefly_frozen_engine_is_left_alone(pod: Pod) -> None:
    pod.start("--hang-after=2").until_serving()
    pod.fault(hang=True)
    stream = asyncio.create_task(ask(pod, "a", sampling_param_max_tokens=6))
    await asyncio.to_thread(pod.until, lambda: pod.state()["frozen_for"] > 1)
    pod.fault(slow=100.0)  # about 0.7 s a token
    assert len((await stream).words) == 6
    assert pod.state()["ready"]


async def test_a_dead_stub_ends_the_pod_at_once(pod: Pod) -> None:
    pod.start().until_serving()
    stream = asyncio.create_task(ask(pod, "a", sampling_param_max_tokens=2000))
    await asyncio.to_thread(pod.until, lambda: pod.state()["running"] == 1)
    died = time.monotonic()
    pod.fault(crash=True)
    assert await asyncio.to_thread(pod.wait, 10) == Exit.ENGINE_LOST
    assert time.monotonic() - died < 2
    assert "1 requests in flight" in pod.message
    await stream


def test_an_engine_that_only_fails_ends_the_pod(pod: Pod) -> None:
    pod.start("--canary-every=0.5").until_serving()
    pod.fault(errors=True)
    assert pod.wait(10) == Exit.ENGINE_LOST
    assert "3 canaries in a row" in pod.message


def test_the_exit_code_of_a_killed_server_is_passed_on(pod: Pod) -> None:
    pod.start().until_serving()
    os.kill(pod.state()["pid"], signal.SIGKILL)
    assert pod.wait(10) == 128 + signal.SIGKILL
    assert pod.message.startswith("CommandExited: ")


def test_nothing_outlives_a_killed_launcher(pod: Pod) -> None:
    pod.start().until_serving()
    pod.signal(signal.SIGKILL)
    pod.wait(5)
    deadline = time.monotonic() + 5
    while pod.descendants() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pod.descendants() == []
    for name in pod.shared_memory():  # nobody is left to remove it; the next container of the pod starts a fresh one
        os.unlink(f"/dev/shm/{name}")


@pytest.mark.parametrize(
    ("simulated", "faults", "words"),
    [
        ({}, {"load_failure": "checkpoint is damaged"}, "LoadFailed: checkpoint is damaged"),
        ({"weight_gib": 131.4}, {}, "LoadFailed: out of memory: weights 131.4 GiB"),
        ({"gpu": "H100"}, {}, "LoadFailed: gpu 'H100' is unknown"),
        ({"gpu": "A100-SXM-80", "precision": "fp8"}, {}, "LoadFailed: fp8 "),
    ],
)
def test_a_failed_load_says_why(pod: Pod, simulated: dict[str, object], faults: dict[str, object], words: str) -> None:
    pod.start(simulated=simulated, faults=faults)
    assert pod.wait(15) == Exit.LOAD_FAILED
    assert pod.message.startswith(words)


def test_loading_takes_as_long_as_it_takes(pod: Pod) -> None:
    pod.start("--hang-after=0.5", simulated={"load_seconds": 2})
    assert pod.http("GET", "/startupz")[0] in (0, 503)
    pod.until_serving()
    assert time.monotonic() - pod.started > 2


async def test_sigterm_lets_a_long_stream_finish(pod: Pod) -> None:
    pod.start("--exit-timeout=20", simulated={"time_scale": 0.5}).until_serving()
    stream = asyncio.create_task(ask(pod, "a", sampling_param_max_tokens=150))
    await asyncio.to_thread(pod.until, lambda: pod.state()["running"] == 1)
    pod.signal(signal.SIGTERM)
    await asyncio.to_thread(pod.until, lambda: pod.state()["phase"] == "stopping")
    assert "draining" in (await ask(pod, "a", sampling_param_max_tokens=1)).error
    assert len((await stream).words) == 150
    assert await asyncio.to_thread(pod.wait, 15) == Exit.STOPPED
    assert pod.message == "Stopped: asked to stop"


async def test_who_keeps_a_connection_is_told_to_go_elsewhere_before_the_server_goes(pod: Pod) -> None:
    """Although nothing is in flight: a server that stops has no words that clients understand."""
    pod.start("--exit-timeout=20").until_serving()
    told: list[tuple[float, str]] = []
    async with grpcclient.InferenceServerClient(pod.grpc) as client:
        began = time.monotonic()
        pod.signal(signal.SIGTERM)
        while not told or "draining" in told[-1][1]:
            answer = await ask(pod, "a", client=client, codes=True, sampling_param_max_tokens=1)
            if answer.error:
                told.append((time.monotonic() - began, answer.error))
            await asyncio.sleep(0.05)  # hundreds of refusals with codes at once can end a starved Triton: record 006
    refused = [after for after, words in told if "UNAVAILABLE" in words and "draining" in words]
    assert max(refused, default=0.0) > REFUSE_AT_LEAST / 2, told
    assert await asyncio.to_thread(pod.wait, 30) == Exit.STOPPED


async def test_a_second_sigterm_does_not_wait(pod: Pod) -> None:
    pod.start("--exit-timeout=0.5", simulated={"time_scale": 0.05}).until_serving()
    stream = asyncio.create_task(ask(pod, "a", sampling_param_max_tokens=2000))
    await asyncio.to_thread(pod.until, lambda: pod.state()["running"] == 1)
    pod.signal(signal.SIGTERM)
    await asyncio.to_thread(pod.until, lambda: pod.state()["phase"] == "stopping")
    pod.signal(signal.SIGTERM)
    assert await asyncio.to_thread(pod.wait, 5) == Exit.STOPPED
    assert "was killed" in pod.message
    await stream


class TestGroup:
    """Two pods, one copy."""

    @staticmethod
    def start(make_pod: Callable[[], Pod], *options: str) -> tuple[Pod, Pod]:
        leader, worker = make_pod(), make_pod()
        leader.start("--members=2", *options)
        hosts = leader.directory / "hosts"
        hosts.write_text(f"{leader.address} leader\n")
        worker.start_worker("--members=2", "--member=1", "--leader=leader", BERTH_HOSTS_FILE=str(hosts))
        return leader, worker

    def test_serves_only_when_every_member_has_joined(self, make_pod: Callable[[], Pod]) -> None:
        leader = make_pod().start("--members=2", "--join-timeout=1.5")
        leader.until(lambda: leader.http("GET", "/readyz") == (503, "joining\n"))
        assert leader.wait(10) == Exit.JOIN_TIMEOUT
        leader, worker = self.start(make_pod)
        leader.until_serving()
        worker.until_serving()
        assert leader.state()["members_joined"] == 2

    @pytest.mark.parametrize(("mode", "code"), [("exit", Exit.MEMBER_LOST), ("hang", Exit.HANG)])
    def test_a_lost_member_ends_the_copy(self, make_pod: Callable[[], Pod], mode: str, code: Exit) -> None:
        leader, worker = self.start(make_pod, f"--on-member-lost={mode}", "--hang-after=2")
        leader.until_serving()
        worker.signal(signal.SIGKILL)
        assert leader.wait(10) == code

    def test_a_worker_does_not_outlive_its_leader(self, make_pod: Callable[[], Pod]) -> None:
        leader, worker = self.start(make_pod)
        leader.until_serving()
        leader.signal(signal.SIGTERM)
        assert leader.wait(10) == Exit.STOPPED
        assert worker.wait(10) == Exit.MEMBER_LOST
        assert worker.message == "MemberLost: the leader is gone"

    def test_the_hook_of_a_worker_waits_for_its_launcher_alone(self, make_pod: Callable[[], Pod]) -> None:
        """SIGTERM follows; whether the leader is there, or draining, is not the worker's matter."""
        worker = make_pod().start_worker("--members=2", "--member=1", "--leader=127.0.0.1")
        hook = [sys.executable, "-m", "berth.engine.launcher", "--drain", "--grace=0", "--timeout=60"]
        done = subprocess.run(hook, env={**os.environ, "BERTH_POD_IP": worker.address}, timeout=30)
        assert done.returncode == 0
        worker.signal(signal.SIGTERM)
        assert worker.wait(10) == Exit.STOPPED

    def test_a_member_of_another_incarnation_is_turned_away(self, make_pod: Callable[[], Pod]) -> None:
        leader, worker = make_pod(), make_pod()
        leader.start("--members=2", "--join-timeout=3")
        worker.start_worker(
            "--members=2", "--member=1", f"--leader={leader.address}", "--join-timeout=1", BERTH_INCARNATION="2"
        )
        assert worker.wait(10) == Exit.JOIN_TIMEOUT
        assert leader.wait(10) == Exit.JOIN_TIMEOUT
