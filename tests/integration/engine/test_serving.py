"""A real Triton server with the simulated engine: what clients get."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
import tritonclient.grpc.aio as grpcclient

from tests.integration.engine.client import ask
from tests.integration.engine.pod import Pod

pytestmark = pytest.mark.triton


async def test_streams_every_token_once_and_in_order(pod: Pod) -> None:
    pod.start().until_serving()
    answers = await asyncio.gather(
        *(
            ask(pod, "one two three", sampling_param_max_tokens=number, return_finish_reason=True)
            for number in (1, 7, 30)
        )
    )
    assert [answer.words for answer in answers] == [[f"w{i}" for i in range(1, n + 1)] for n in (1, 7, 30)]
    assert {answer.outputs["finish_reason"] for answer in answers} == {"length"}
    stopped = await ask(pod, "one", sampling_param_max_tokens=50, sampling_param_stop="w9", return_stop_reason=True)
    assert (stopped.words[-1], stopped.outputs["stop_reason"]) == ("w8", "w9")
    whole = await ask(pod, "one", streaming=False, sampling_param_max_tokens=4, sampling_param_return_perf_metrics=True)
    assert (whole.words, len(whole.arrivals)) == (["w1", "w2", "w3", "w4"], 1)
    assert (
        whole.outputs["arrival_time_ns"]
        <= whole.outputs["first_scheduled_time_ns"]
        < whole.outputs["first_token_time_ns"]
        < whole.outputs["last_token_time_ns"]
    )


async def test_bad_requests_are_refused_by_name_and_do_no_harm(pod: Pod) -> None:
    pod.start().until_serving()
    cases = {
        "text_input is missing": (None, {}),
        "sampling_param_max_tokens is 5000: give a number from 1 to 2048": ("a", {"sampling_param_max_tokens": 5000}),
        "sampling_param_top_p is 7": ("a", {"sampling_param_top_p": 7.0}),
        "stop needs the id": ("a", {"stop": True}),
        "exceed the KV cache": ("word " * 700_000, {}),
    }
    for words, (prompt, parameters) in cases.items():
        assert words in (await ask(pod, prompt, **parameters)).error
    pod.until(lambda: pod.state()["in_flight"] == 0)
    assert pod.state()["failures"]["engine"] == 0
    assert (await ask(pod, "a", sampling_param_max_tokens=2)).words == ["w1", "w2"]


async def test_a_cancelled_request_ends_within_half_a_second(pod: Pod) -> None:
    pod.start(simulated={"time_scale": 0.2}).until_serving()
    async with grpcclient.InferenceServerClient(pod.grpc) as client:
        reading = asyncio.create_task(ask(pod, "a", client=client, sampling_param_max_tokens=2000))
        await asyncio.to_thread(pod.until, lambda: pod.state()["running"] == 1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        gone = await asyncio.to_thread(pod.until, lambda: pod.state()["in_flight"] == 0)
    assert gone < 1.0  # half a second, and two reports of a quarter
    assert pod.state()["failures"]["cancelled"] == 1
    named = asyncio.create_task(ask(pod, "a", name="mine", sampling_param_max_tokens=2000))
    await asyncio.to_thread(pod.until, lambda: pod.state()["running"] == 1)
    assert (await ask(pod, None, name="mine", stop=True)).words == ["1", "requests", "ended"]
    assert "cancelled" in (await named).error


async def test_metrics_count_attainment_at_the_objective_exactly(pod: Pod) -> None:
    # Objectives that the slowest machine meets, at edges that no histogram has by itself.
    pod.start().until_serving()
    assert pod.http("PUT", "/objectives", {"time_to_first_token": 7.3, "time_per_output_token": 4.56})[0] == 200
    name = "trtllm_time_to_first_token_seconds"
    pod.until(lambda: f'{name}_bucket{{le="7.3"}} 0' in pod.http("GET", "/metrics")[1])
    for _ in range(3):
        await ask(pod, "a " * 100, sampling_param_max_tokens=5)
    pod.until(lambda: pod.metric("trtllm_time_per_output_token_seconds_count") == 3)  # told when a request has ended
    assert pod.metric(f'{name}_bucket{{le="7.3"}}') == 3
    assert pod.metric('trtllm_time_per_output_token_seconds_bucket{le="4.56"}') == 3
    assert pod.metric('nv_llm_input_token_len_bucket{le="128"}') == 3
    assert pod.metric('nv_llm_input_token_len_bucket{le="64"}') == 0
    assert pod.metric("nv_llm_output_token_len_sum") == 15
    assert pod.metric("berth_output_tokens_squared_total") == 75
    assert pod.metric("berth_client_tokens_total") == 15
    assert pod.metric("berth_generated_tokens_total") >= 16  # and the launcher's canaries, one at least
    assert pod.metric("berth_engine_step_prefill_tokens_total") >= 300
    assert len(pod.http("GET", "/metrics")[1]) < 16_000


async def test_draining_refuses_new_requests_on_a_kept_channel_and_finishes_old_ones(pod: Pod) -> None:
    pod.start(simulated={"time_scale": 0.5}).until_serving()
    async with grpcclient.InferenceServerClient(pod.grpc) as client:
        long = asyncio.create_task(ask(pod, "a", client=client, sampling_param_max_tokens=120))
        assert (await ask(pod, "a", client=client, sampling_param_max_tokens=1)).words == ["w1"]
        asked = time.monotonic()
        assert pod.http("POST", "/drain?grace=0.5")[0] == 202
        assert pod.http("GET", "/readyz") == (503, "draining\n")
        last_accepted = asked
        while not (answer := await ask(pod, "a", client=client, sampling_param_max_tokens=1)).error:
            last_accepted = time.monotonic()
        assert "draining: reconnect" in answer.error
        assert "StatusCode.UNAVAILABLE" in (await ask(pod, "a", client=client, codes=True)).error
        assert 0.3 < last_accepted - asked < 1.0
        assert not long.done()
        drain = [str(pod.env.python), "-m", "berth.engine.launcher", "--drain", "--timeout=20"]
        waiting = await asyncio.create_subprocess_exec(*drain, env=pod.environment)
        assert len((await long).words) == 120
        assert await waiting.wait() == 0
        state = json.loads(pod.http("DELETE", "/drain")[1])
        assert (state["phase"], state["accepting"]) == ("serving", True)
        assert (await ask(pod, "a", client=client, sampling_param_max_tokens=1)).words == ["w1"]
