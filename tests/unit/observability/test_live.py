"""Live figures: of those whose UID is known, in words for people, and only from the replica that leads."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest

from berth.core.measurement.measured import Measured
from berth.live import MOST_ASKED, PATH, Live, serve_live
from berth.serving.reader import Reader
from tests.support.berth import free_port
from tests.unit.serving.pages import leader
from tests.unit.serving.test_reader import WANTED, Leaders

LLAMA, QWEN = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"


@pytest.fixture
async def live() -> Live:
    """Two deployments, read for two minutes; nobody knows qwen's UID."""
    leaders = Leaders()
    reader = Reader(leaders, lambda _: None, lambda: leaders.now, warm_up_seconds=0)
    groups = [leader(f"10.0.0.{n}", n, objectives=WANTED, group=f"llama-70b-1a2b3-g{n}-7") for n in range(2)]
    reader.follow("llama", groups[:1])
    reader.follow("qwen", groups[1:])
    for _ in range(12):
        leaders.now += 10
        await reader.round()
        leaders.serve("u0", 10)
    found = Live(reader)
    found.know(LLAMA, "llama")
    return found


def test_figures_are_of_now_and_read_as_people_read_them(live: Live) -> None:
    (told,) = live.told([LLAMA, QWEN, LLAMA])
    assert (told["uid"], told["fresh"], told["requestsPerSecond"]) == (LLAMA, True, "1")
    (group,) = told["groups"]
    assert (group["name"], group["incarnation"]) == ("g0", 7)
    assert group["outputTokensPerSecond"] == told["outputTokensPerSecond"]
    assert group["ttftP95"].endswith("ms")


def test_what_went_or_has_another_uid_is_not_told_any_more(live: Live) -> None:
    live.know(QWEN, "llama")
    assert live.told([LLAMA]) == []
    assert [each["uid"] for each in live.told([QWEN])] == [QWEN]
    live.forget("llama")
    live.forget("llama")
    assert live.told([LLAMA, QWEN]) == []


def test_silence_is_said_and_never_a_figure() -> None:
    @dataclass
    class Nothing:
        def measured(self, key: object) -> Measured:
            return Measured(at=math.pi)

    live = Live(Nothing())
    live.know(LLAMA, "llama")
    assert live.told([LLAMA]) == [{"uid": LLAMA, "fresh": False, "groups": [], "problem": "no group serves"}]


@pytest.fixture
async def page(live: Live) -> AsyncIterator[tuple[str, list[bool]]]:
    """Address of the page, and whether its replica leads."""
    leads, port = [True], free_port()
    async with AsyncExitStack() as stack:
        await serve_live(stack, ("127.0.0.1", port), live, lambda: leads[0])
        yield f"http://127.0.0.1:{port}{PATH}", leads


async def test_the_page_answers_for_known_uids_alone(page: tuple[str, list[bool]]) -> None:
    address, leads = page
    async with aiohttp.ClientSession() as session:
        async with session.get(address, params=[("uid", LLAMA), ("uid", QWEN)]) as answer:
            assert [each["uid"] for each in (await answer.json())["deployments"]] == [LLAMA]
        async with session.get(address) as answer:
            assert await answer.json() == {"deployments": []}
        for bad in ([("uid", "../etc")], [("uid", LLAMA)] * (MOST_ASKED + 1)):
            async with session.get(address, params=bad) as answer:
                assert answer.status == 400
        async with session.post(address) as answer:
            assert answer.status == 405
        leads[0] = False
        async with session.get(address, params={"uid": LLAMA}) as answer:
            assert (answer.status, await answer.text()) == (503, "this replica does not lead\n")
