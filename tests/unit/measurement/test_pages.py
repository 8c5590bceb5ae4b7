"""Pages of leaders as samples: the launcher's own, Triton's, and whatever else may come from a pod."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.measurement.pages import NAMES, Unreadable, sample_of, sample_of_page, series_of
from berth.core.measurement.samples import Objectives, Sample, between
from berth.engine.engines.base import EngineState
from berth.engine.exposition import render
from berth.engine.meter import Meter


class Pod:
    """What runs in a pod, by a clock of its own: meter and page."""

    def __init__(self, first_token: float = 1.5) -> None:
        self.now = 100.0
        self.meter = Meter(lambda: self.now)
        self.engine = EngineState(running=3, waiting=1, kv_utilization=0.4)
        self.meter.set_objectives({"time_to_first_token": first_token})

    def serve(self, first: float, tokens: int = 3, gap: float = 0.02, canary: bool = False) -> None:
        ticket = self.meter.accept(canary=canary)
        ticket.input_tokens, ticket.requested_tokens, ticket.scheduled = 40, 1024, self.now + first / 2
        for number in range(tokens):
            self.now += gap if number else first
            self.meter.tokens(ticket, 1)
        self.meter.close(ticket)
        self.engine.steps += tokens
        self.engine.step_seconds += tokens * gap
        self.engine.step_decodes += tokens

    def page(self) -> str:
        return render(self.meter.document(self.engine), serving=True, draining=False, now=self.now, wall=5e9)

    def sample(self) -> Sample:
        return sample_of_page(self.page(), self.now)


def test_the_launchers_page_is_read_in_full() -> None:
    pod = Pod()
    before = pod.sample()
    for first in (0.3, 1.4999, 1.6):
        pod.serve(first)
    pod.serve(0.1, tokens=1, canary=True)
    tally = between(before, pod.sample(), Objectives(first_token=1.5))
    assert tally is not None
    assert (tally.first_token_met.requests, tally.first_token_met.low, tally.first_token_met.exact) == (3, 2, True)
    assert (tally.requests, tally.tokens, tally.finished) == (3, 9, 3), "the canary is in none of these"
    assert tally.time_per_output_token == pytest.approx(0.02)
    assert (tally.requested_tokens, tally.input_squares) == (3 * 1024, 3 * 1600)
    assert (tally.running_sum, tally.waiting_sum, tally.kv_use_sum) == (3, 1, 0.4)
    assert tally.steps.steps == 10
    assert tally.queue is not None
    assert tally.queue.count == 3


def test_failures_are_told_apart_by_whose_fault_they_are() -> None:
    pod = Pod()
    before = pod.sample()
    for failure in ("invalid", "engine", "engine", "cancelled"):
        pod.meter.close(pod.meter.accept(canary=False), failure)
    pod.meter.refuse()
    pod.now += 1
    tally = between(before, pod.sample(), Objectives())
    assert tally is not None
    assert (tally.failures, tally.cancellations, tally.refusals, tally.requests) == (2, 1, 1, 4)


TRITON = """\
nv_inference_request_success{model="ensemble",version="1"} 40
nv_inference_request_success{model="preprocessing",version="1"} 40
nv_inference_request_failure{model="ensemble",reason="REJECTED",version="1"} 2
nv_inference_request_failure{model="ensemble",reason="BACKEND",version="1"} 1
nv_inference_request_duration_us{model="ensemble",version="1"} 12000000
nv_inference_first_response_histogram_ms_count{model="ensemble",version="1"} 40
nv_inference_first_response_histogram_ms_sum{model="ensemble",version="1"} 4000
nv_inference_first_response_histogram_ms_bucket{model="ensemble",version="1",le="100"} 30
nv_inference_first_response_histogram_ms_bucket{model="ensemble",version="1",le="500"} 39
nv_inference_first_response_histogram_ms_bucket{model="ensemble",version="1",le="+Inf"} 40
nv_llm_output_token_len_count{response_metric_type="total_output_tokens",model="tensorrt_llm"} 40
nv_llm_output_token_len_sum{response_metric_type="total_output_tokens",model="tensorrt_llm"} 840
nv_llm_output_token_len_bucket{response_metric_type="total_output_tokens",model="tensorrt_llm",le="10"} 0
nv_llm_output_token_len_bucket{response_metric_type="total_output_tokens",model="tensorrt_llm",le="50"} 40
nv_llm_output_token_len_bucket{response_metric_type="total_output_tokens",model="tensorrt_llm",le="+Inf"} 40
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 9
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 7
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 400
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 100
"""


def test_tritons_own_page_of_built_engines_is_read() -> None:
    sample = sample_of_page(TRITON, 7.0)
    assert (sample.running, sample.waiting, sample.kv_use) == (7, 2, 0.25)
    assert sample.first_token is not None
    assert (sample.first_token.edges, sample.first_token.counts) == ((0.1, 0.5), (30, 9, 1))
    assert sample.counters["requests"] == 40
    assert (sample.counters["refusals"], sample.counters["failures"]) == (2, 1)
    assert sample.counters["decode_seconds"] / sample.counters["decode_tokens"] == pytest.approx((12 - 4) / (840 - 40))
    assert sample.first_token.within(0.3).exact is False


@pytest.mark.parametrize(
    "text",
    ["", "berth_serving 1\n", "<html>not here</html>\n", "berth_client_requests_total 12", "\x00\xff\n" * 9],
    ids=["empty", "still loading", "html", "cut off", "garbage"],
)
def test_a_page_of_no_use_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        sample_of_page(text, 1.0)


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "1e400", "1_0 x y", "", "0x10", "9" * 400])
def test_a_value_that_makes_no_sense_is_unknown(value: str) -> None:
    page = Pod().page().replace("berth_client_tokens_total 0", f"berth_client_tokens_total {value}")
    assert "tokens" not in sample_of_page(page, 1.0).counters


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('seconds_bucket{le="+Inf"} 2', 'seconds_bucket{le="+Inf"} 1'),
        ('seconds_bucket{le="1.5"} 2', 'seconds_bucket{le="1.5"} 0.5'),
        ("first_token_seconds_sum", "first_token_seconds_some"),
        ('le="1.5"', 'le="x"'),
    ],
)
def test_a_histogram_that_contradicts_itself_is_unknown(old: str, new: str) -> None:
    pod = Pod()
    pod.serve(0.1)
    pod.serve(1.2)
    page = pod.page()
    assert old in page
    assert sample_of_page(page.replace(old, new), 1.0).first_token is None


@given(st.text(max_size=400), st.integers(0, 9000), st.integers(0, 400))
def test_nothing_a_pod_says_breaks_the_reader(noise: str, place: int, cut: int) -> None:
    """A page with a hole and noise in it gives a sample of sane numbers, or none."""
    pod = Pod()
    pod.serve(0.2)
    page = pod.page()
    try:
        sample = sample_of_page(page[:place] + noise + page[place + cut :], 1.0)
    except Unreadable:
        return
    known = [*sample.counters.values(), sample.running, sample.waiting, sample.kv_use]
    assert all(value is None or (math.isfinite(value) and value >= 0) for value in known)
    for histogram in (sample.first_token, sample.per_token, sample.queue, sample.input, sample.output):
        assert histogram is None or (min(histogram.counts) >= 0 and list(histogram.edges) == sorted(histogram.edges))


def test_series_from_prometheus_are_the_same_sample() -> None:
    pod = Pod()
    pod.serve(0.2)
    told = []
    for line in pod.page().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name, _, rest = name.partition("{")
            labels = dict(pair.split("=") for pair in rest.rstrip("}").replace('"', "").split(",") if pair)
            told.append(({"__name__": name, "pod": "p", "instance": "10.0.0.1:8003", **labels}, float(value)))
    assert sample_of(series_of(told), pod.now) == pod.sample()


def test_the_page_stays_small_and_all_that_is_read_is_on_it() -> None:
    page = Pod().page()
    assert len(page) < 12_000
    mine = {name for name in NAMES if name.startswith(("berth_", "trtllm_", "nv_llm_"))}
    assert {name for name in mine if f"\n{name}" not in f"\n{page}"} == set()
