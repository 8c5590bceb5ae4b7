"""Reading over real sockets: bounded in time, size and number, whatever the other side does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import parse_qs

import pytest

from berth.core.measurement.samples import Objectives, Sample
from berth.errors import Transient
from berth.serving.sources import PARALLEL_PAGES, PODS_PER_QUERY, Leader, Pages, Prometheus
from tests.unit.serving.pages import Request, free_address, http, leader, page, server

TRITON = 'nv_inference_request_success{model="ensemble",version="1"} 4\n'


async def for_ever(_request: Request) -> bytes:
    await asyncio.Event().wait()
    return b""


def endless(_request: Request) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n" + b"# nothing here\n" * 699_050


HOSTILE: dict[str, tuple[Callable[[Request], object], str]] = {
    "hangs": (for_ever, "did not answer in time"),
    "10 MiB": (endless, "more than 256 KiB"),
    "half an answer": (
        lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\nberth_client_requests_total 4\n",
        "cannot be read",
    ),
    "half a page": (lambda _: http(page(4)[:-5]), "cut off"),
    "redirect": (lambda _: http("", "302 Found", "Location: http://127.0.0.1:9/\r\n"), "answered 302"),
    "not found": (lambda _: http("no such page\n", "404 Not Found"), "answered 404"),
    "no HTTP": (lambda _: b"SSH-2.0-OpenSSH_9.6\r\n", "cannot be read"),
    "says nothing": (lambda _: b"", "cannot be read"),
    "garbage": (lambda _: http(bytes(range(256)) * 50), "cut off"),
    "compressed": (lambda _: http(b"\x1f\x8b" + b"\0" * 99, headers="Content-Encoding: gzip\r\n"), "cut off"),
}


LONG, SHORT = 30.0, 2.0
"""Seconds for answers that come, however busy the machine is, and for those of somebody who never answers."""


def patience(answer: object) -> float:
    return SHORT if answer is for_ever else LONG


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    source = Pages(lambda: 50.0, timeout_seconds=LONG)
    yield source
    await source.close()


async def read(source: Pages | Prometheus, *leaders: Leader) -> dict[str, Sample | str]:
    told: dict[str, Sample | str] = {}

    def tell(leader: Leader, found: Sample | str) -> None:
        assert leader.uid not in told, "told twice"
        told[leader.uid] = found

    await source.read(leaders, tell)
    return told


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_leader_that_misbehaves_costs_its_own_figures_only(case: str) -> None:
    answer, words = HOSTILE[case]
    pages = Pages(lambda: 50.0, timeout_seconds=patience(answer))
    async with server(answer) as bad, server(lambda _: http(page(3))) as good:  # type: ignore[arg-type]
        told = await read(pages, leader(bad.address, 0), leader(good.address, 1))
    await pages.close()
    problem, sample = told["u0"], told["u1"]
    assert isinstance(problem, str)
    assert words in problem
    assert isinstance(sample, Sample)
    assert sample.counters["requests"] == 3


async def test_a_leader_that_is_not_there_is_said_to_be_so(pages: Pages) -> None:
    told = await read(pages, leader(free_address()))
    assert "cannot be read" in str(told["u0"])


async def test_an_image_with_its_own_model_is_read_from_tritons_page(pages: Pages) -> None:
    async with AsyncExitStack() as stack:
        launcher = await stack.enter_async_context(server(lambda _: http("berth_serving 1\n")))
        await stack.enter_async_context(server(lambda _: http(TRITON), 8002, launcher.address))
        sample = (await read(pages, leader(launcher.address)))["u0"]
    assert isinstance(sample, Sample)
    assert sample.counters == {"requests": 4.0}


async def test_no_more_pages_at_once_than_allowed(pages: Pages) -> None:
    gate = asyncio.Event()

    async def slowly(_request: Request) -> bytes:
        await gate.wait()
        return http(page(1))

    async with server(slowly) as one:
        leaders = [leader(one.address, number) for number in range(PARALLEL_PAGES + 40)]
        reading = asyncio.create_task(read(pages, *leaders))
        while one.open < PARALLEL_PAGES:
            await asyncio.sleep(0.01)
        gate.set()
        told = await reading
    assert one.most_open == PARALLEL_PAGES
    assert all(isinstance(found, Sample) for found in told.values())


async def test_an_objective_is_asked_for_in_seconds(pages: Pages) -> None:
    async with server(lambda _: http("{}")) as one:
        await pages.want(leader(one.address, objectives=Objectives(first_token=1.5, per_token=0.05)))
        await pages.want(leader(one.address, objectives=Objectives(per_token=0.05)))
    bodies = [json.loads(request.body) for request in one.requests]
    assert bodies == [{"time_to_first_token": 1.5, "time_per_output_token": 0.05}, {"time_per_output_token": 0.05}]
    assert {(request.method, request.path) for request in one.requests} == {("PUT", "/objectives")}


# --- Prometheus ------------------------------------------------------------------------------------------------------
def matrix(pods: dict[str, int], at: float = 45.0, instance: str = "i:8003") -> list[dict[str, Any]]:
    """The series of PAGE for each pod, scraped twice."""
    result: list[dict[str, Any]] = []
    for pod, requests in pods.items():
        for line in page(requests).splitlines():
            name, _, value = line.rpartition(" ")
            name, _, edge = name.partition('{le="')
            labels = {"__name__": name, "pod": pod, "namespace": "ns", "instance": instance, "job": "berth"}
            labels |= {"le": edge.rstrip('"}')} if edge else {}
            result.append({"metric": labels, "values": [[at - 10, "0"], [at, value]]})
    return result


def answered(result: object, kind: str = "matrix") -> bytes:
    return http(json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}))


async def ask(answer: Callable[[Request], object], *leaders: Leader) -> tuple[dict[str, Sample | str], list[Request]]:
    async with server(answer, 9090) as prometheus:  # type: ignore[arg-type]
        pages = Pages(lambda: 50.0)
        source = Prometheus(f"http://{prometheus.address}:9090/", pages, 30.0, timeout_seconds=patience(answer))
        try:
            return await read(source, *leaders), prometheus.requests
        finally:
            await source.close()


async def test_prometheus_gives_the_sample_of_the_newest_scrape_with_its_time() -> None:
    told, requests = await ask(lambda _: answered(matrix({"p0": 7, "p1": 9})), leader("x", 0), leader("x", 1))
    samples = [told["u0"], told["u1"]]
    assert [isinstance(each, Sample) and (each.at, each.counters["requests"]) for each in samples] == [(45, 7), (45, 9)]
    (request,) = requests
    query = parse_qs(request.body.decode())["query"][0]
    assert request.path == "/api/v1/query"
    assert query.endswith(',namespace="ns",pod=~"p0|p1"}[30s]')


async def test_the_launchers_page_is_preferred_where_prometheus_scrapes_tritons_too() -> None:
    other: list[dict[str, Any]] = [
        {
            "metric": {"__name__": "nv_inference_request_success", "model": "tensorrt_llm", "pod": "p0", "instance": i},
            "values": [[49.0, "1000"]],
        }
        for i in ("a:8002", "z:8002")
    ]
    for result in (other + matrix({"p0": 7}), matrix({"p0": 7}) + other):
        told, _ = await ask(lambda _, result=result: answered(result), leader("x", 0))  # type: ignore[misc]
        sample = told["u0"]
        assert isinstance(sample, Sample)
        assert (sample.at, sample.counters["requests"]) == (45, 7)


async def test_a_pod_that_prometheus_does_not_know_is_said_to_be_so() -> None:
    told, _ = await ask(lambda _: answered(matrix({"p0": 7})), leader("x", 0), leader("x", 5))
    assert told["u5"] == "Prometheus has nothing of pod p5 in the last 30 s"
    assert isinstance(told["u0"], Sample)


async def test_many_pods_are_asked_for_in_parts() -> None:
    leaders = [leader("x", number) for number in range(2 * PODS_PER_QUERY + 1)]
    told, requests = await ask(lambda _: answered([]), *leaders)
    assert len(told) == len(leaders)
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (for_ever, "did not answer in time"),
        (lambda _: http("down", "503 Service Unavailable"), "answered 503"),
        (lambda _: http("<html>"), "own format"),
        (lambda _: http("[" * 100_000), "own format"),
        (lambda _: http("[]"), "own format"),
        (lambda _: http('{"status": "error"}'), "did not answer the question"),
        (lambda _: answered([], "vector"), "did not answer the question"),
        (lambda _: answered("odd"), "has nothing of pod"),
        (lambda _: answered([{"metric": 1}, {"metric": {"pod": "p0"}, "values": [[1, "x"]]}, 7]), "has nothing of pod"),
        (lambda _: answered([{"metric": {"pod": "p0"}, "values": [[1, "1"]]}]), "tells nothing"),
    ],
)
async def test_a_prometheus_that_misbehaves_gives_no_samples(answer: Callable[[Request], object], words: str) -> None:
    told, _ = await ask(answer, leader("x", 0))
    assert words in str(told["u0"])


async def test_an_unreachable_leader_cannot_be_asked_for_objectives(pages: Pages) -> None:
    with pytest.raises(Transient):
        await pages.want(leader(free_address(), objectives=Objectives(first_token=1.0)))
