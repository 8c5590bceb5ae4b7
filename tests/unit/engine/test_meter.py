"""Counting and its page: what goes in comes out under the promised names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from berth.engine.engines.base import EngineState
from berth.engine.exposition import render
from berth.engine.meter import Histogram, Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Iterator[Meter]:
    return Meter(clock)


def serve(meter: Meter, clock: Clock, *, first: float, gaps: list[float], canary: bool = False) -> None:
    ticket = meter.accept(canary=canary)
    ticket.input_tokens, ticket.requested_tokens = 40, 1024
    ticket.scheduled = clock.now + first / 2
    for gap in (first, *gaps):
        clock.now += gap
        meter.tokens(ticket, 1)
    meter.close(ticket)
    meter.close(ticket)


def samples(meter: Meter, clock: Clock) -> dict[str, float]:
    text = render(
        meter.document(EngineState(steps=7, step_seconds=0.5)), serving=True, draining=False, now=clock.now, wall=5e9
    )
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{value}" for _, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_times_of_a_request_land_in_their_histograms(meter: Meter, clock: Clock) -> None:
    serve(meter, clock, first=0.4, gaps=[0.03, 0.05])
    got = samples(meter, clock)
    assert got["trtllm_time_to_first_token_seconds_sum"] == pytest.approx(0.4)
    assert got["trtllm_time_per_output_token_seconds_sum"] == pytest.approx(0.04)
    assert got["trtllm_e2e_request_latency_seconds_sum"] == pytest.approx(0.48)
    assert got["trtllm_request_queue_time_seconds_sum"] == pytest.approx(0.2)
    assert got["nv_llm_output_token_len_bucket{16}"] == got["nv_llm_output_token_len_count"] == 1
    assert (got["nv_llm_input_token_len_bucket{32}"], got["nv_llm_input_token_len_bucket{64}"]) == (0, 1)
    assert got["berth_input_tokens_squared_total"] == 1600
    assert got["berth_requested_tokens_total"] == 1024
    assert (got["berth_engine_steps_total"], got["berth_engine_step_seconds_total"]) == (7, 0.5)
    assert got["berth_last_token_timestamp_seconds"] == 5e9


def test_the_objective_is_an_edge_and_the_edge_itself_attains(meter: Meter, clock: Clock) -> None:
    meter.set_objectives({"time_to_first_token": 1.5, "time_per_output_token": 0.0333})
    for first in (1.4375, 1.5, 1.5625):
        serve(meter, clock, first=first, gaps=[0.03125])
    got = samples(meter, clock)
    assert got["trtllm_time_to_first_token_seconds_bucket{1.5}"] == 2
    assert got["trtllm_time_to_first_token_seconds_count"] == 3
    assert got["trtllm_time_per_output_token_seconds_bucket{0.0333}"] == 3
    meter.set_objectives({"time_to_first_token": 1.5, "time_per_output_token": 0.0333})
    assert samples(meter, clock)["trtllm_time_to_first_token_seconds_count"] == 3
    meter.set_objectives({"time_to_first_token": 1.0})
    assert samples(meter, clock)["trtllm_time_to_first_token_seconds_count"] == 0


def test_canaries_are_progress_but_no_latency(meter: Meter, clock: Clock) -> None:
    serve(meter, clock, first=0.4, gaps=[0.1], canary=True)
    document, got = meter.document(EngineState()), samples(meter, clock)
    assert (document["tokens"], document["requests"], document["last_accepted"]) == (2, 1, None)
    assert got["trtllm_time_to_first_token_seconds_count"] == got["nv_llm_input_token_len_count"] == 0


def test_failures_are_counted_by_reason_and_leave_no_latency(meter: Meter, clock: Clock) -> None:
    for failure in ("invalid", "engine", "cancelled"):
        meter.close(meter.accept(canary=False), failure)  # type: ignore[arg-type]
    meter.refuse()
    got = samples(meter, clock)
    assert {
        got[f"berth_request_failures_total{{{reason}}}"] for reason in ("invalid", "engine", "cancelled", "draining")
    } == {1}
    assert got["trtllm_e2e_request_latency_seconds_count"] == 0
    assert meter.in_flight == 0


def test_a_page_without_a_model_says_only_what_it_knows() -> None:
    text = render({}, serving=False, draining=True, now=0, wall=0)
    families = {family.name: family.samples[0].value for family in text_string_to_metric_families(text)}
    assert families == {"berth_serving": 0, "berth_draining": 1}


@given(st.lists(st.floats(0, 100), max_size=50), st.lists(st.floats(0.1, 50), min_size=1, max_size=10))
def test_histograms_count_like_a_list(values: list[float], edges: list[float]) -> None:
    histogram = Histogram(edges)
    for value in values:
        histogram.observe(value)
    document = histogram.document()
    below = 0
    for edge, count in zip(document["edges"], document["counts"], strict=False):
        below += count
        assert below == sum(value <= edge for value in values)
    assert sum(document["counts"]) == len(values)
