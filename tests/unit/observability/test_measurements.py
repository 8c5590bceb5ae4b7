"""What Prometheus is told of measurements: figures of what happened, nothing of what is gone, names by the rules."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from berth.measurements import FAMILIES, Measurements
from berth.metrics import Metrics
from berth.serving.reader import Reader
from berth.standing import Standing
from tests.unit.serving.pages import leader
from tests.unit.serving.test_reader import WANTED, Leaders
from tools import metrics_page


@dataclass(frozen=True)
class Key:
    namespace: str
    name: str


LLAMA, QWEN = Key("serving", "llama"), Key("serving", "qwen")


@pytest.fixture
async def reader() -> Reader:
    """Two deployments on one pool, read for two minutes; a tenth of llama's requests is slow."""
    return await read_for_two_minutes(Leaders())


async def read_for_two_minutes(leaders: Leaders) -> Reader:
    reader = Reader(leaders, lambda _: None, lambda: leaders.now, warm_up_seconds=0)
    reader.follow(LLAMA, [leader("10.0.0.1", 0, objectives=WANTED)])
    reader.follow(QWEN, [leader("10.0.0.2", 1, objectives=WANTED)])
    for _ in range(12):
        leaders.now += 10
        await reader.round()
        leaders.serve("u0", 9, slow=1)
        leaders.serve("u1", 10)
    return reader


def told(reader: Reader) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(Measurements(reader))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


async def test_deployments_and_their_pool_are_told(reader: Reader) -> None:
    found = told(reader)
    llama = "deployment=llama,"
    assert found[f"berth_attainment_ratio{{{llama}metric=ttft,namespace=serving,window=fast}}"] == pytest.approx(0.9)
    assert found[f"berth_attainment_ratio{{{llama}metric=ttft,namespace=serving,window=slow}}"] == pytest.approx(0.9)
    assert found["berth_pool_attainment_ratio{metric=ttft,pool=h100,window=fast}"] == pytest.approx(0.95)
    assert found["berth_pool_requests_per_second{pool=h100}"] == pytest.approx(2.0)
    assert found[f"berth_requests_per_second{{{llama}namespace=serving}}"] == pytest.approx(1.0)
    assert found[f"berth_time_to_first_token_seconds{{{llama}namespace=serving,quantile=0.5}}"] <= 0.5
    assert found[f"berth_time_to_first_token_seconds{{{llama}namespace=serving,quantile=0.99}}"] == float("inf")
    assert found[f"berth_metrics_age_seconds{{{llama}namespace=serving}}"] == 0


async def test_queue_kv_tokens_and_requests_in_flight_are_told_of_deployments_and_pools() -> None:
    found = told(await read_for_two_minutes(Leaders(queues=True)))
    for prefix, labels, groups in (("", "deployment=llama,namespace=serving", 1), ("pool_", "pool=h100", 2)):
        assert found[f"berth_{prefix}output_tokens_per_second{{{labels}}}"] == pytest.approx(20 * groups)
        assert found[f"berth_{prefix}requests_in_flight{{{labels}}}"] == pytest.approx(3 * groups)
        assert found[f"berth_{prefix}requests_waiting{{{labels}}}"] == pytest.approx(2 * groups)
        assert found[f"berth_{prefix}kv_cache_usage_ratio{{{labels}}}"] == pytest.approx(0.25)
        assert 0 < found[f"berth_{prefix}request_queue_seconds{{{labels},quantile=0.95}}"] <= 0.25


async def test_what_nobody_measured_is_absent(reader: Reader) -> None:
    found = told(reader)
    assert not any(name.startswith(("berth_time_per_output_token", "berth_request_queue")) for name in found)
    assert not any("metric=tpot" in name for name in found)


async def test_series_of_a_deployment_that_is_gone_vanish(reader: Reader) -> None:
    reader.forget(LLAMA)
    found = told(reader)
    assert not any("llama" in name for name in found)
    assert found["berth_pool_attainment_ratio{metric=ttft,pool=h100,window=fast}"] == 1
    reader.forget(QWEN)
    assert told(reader) == {}


async def test_a_scrape_beside_readings_sees_whole_figures(reader: Reader) -> None:
    """The page is made in a thread of its own while leaders come and go."""
    stop = asyncio.Event()

    async def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            reader.follow(Key("n", f"d{number % 50}"), [leader("10.0.0.9", number, objectives=WANTED)])
            reader.forget(Key("n", f"d{(number + 25) % 50}"))
            await reader.round()
            await asyncio.sleep(0)

    churning = asyncio.create_task(churn())
    for _ in range(20):
        found = await asyncio.to_thread(told, reader)
        assert found["berth_attainment_ratio{deployment=llama,metric=ttft,namespace=serving,window=slow}"] <= 1
    stop.set()
    await churning


def test_names_follow_the_rules_of_prometheus_and_stand_once() -> None:
    registry = Metrics().registry
    registry.register(Standing())
    registry.register(Measurements(None))  # refuses a name that is taken
    names = [family.name for family in registry.collect()]
    assert all(re.fullmatch("berth_[a-z0-9_]+", name) for name in names)
    assert not [name for name in FAMILIES if name.endswith(("_ms", "_milliseconds", "_percent", "_total"))]


def test_moves_are_counted_by_cause_and_result() -> None:
    metrics = Metrics()
    metrics.move_ended("Objectives", "Completed")
    assert b'berth_moves_total{cause="Objectives",result="Completed"} 1.0' in metrics.render()


def test_the_page_of_metrics_names_every_metric() -> None:
    page = metrics_page.page()
    assert metrics_page.PAGE.read_text() == page
    for name in FAMILIES:
        assert f"| `{name}` |" in page
    assert "| `berth_moves_total` | counter | `cause`, `result` |" in page
