"""When a reading is worth a look at all that was measured: there is one every ten seconds of every leader."""

from __future__ import annotations

from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from berth.controller.measuring import Measuring
from berth.core.measurement.measured import Measured
from berth.core.measurement.report import SAY_SECONDS
from berth.serving.reader import Reader
from tests.support.berth import ScriptedMetrics
from tests.unit.serving.pages import leader

KEY = "k"


class CountingReader(Reader):
    looks = 0

    def measured(self, key: Hashable) -> Measured:
        self.looks += 1
        return super().measured(key)


class Site:
    """One deployment with one leader, whose pass is over."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.woken: list[Hashable] = []
        self.metrics = ScriptedMetrics(clock=lambda: self.now)
        self.reader = CountingReader(self.metrics, lambda key: self.measuring.news(key), lambda: self.now)
        self.measuring = Measuring(self.reader, self.woken.append, lambda: self.now)
        self.leader = leader("10.0.0.1")
        self.reader.follow(KEY, [self.leader])

    def say(self) -> None:
        self.measuring.report(
            KEY, cast(Any, SimpleNamespace(measured=None, raw={})), cast(Any, SimpleNamespace(wanted=None))
        )

    async def rounds(self, seconds: float, requests: int = 0) -> int:
        """Looks in this time."""
        before = self.reader.looks
        for _ in range(round(seconds / 10)):
            self.now += 10
            self.metrics.serve(self.leader.pod, requests)
            await self.reader.round()
        return self.reader.looks - before


@pytest.fixture
async def site() -> Site:
    made = Site()
    await made.rounds(60)
    made.say()
    return made


async def test_a_deployment_without_requests_is_looked_at_once_a_minute(site: Site) -> None:
    assert await site.rounds(10 * SAY_SECONDS) == 10
    assert not site.woken


async def test_the_first_answers_are_told_with_the_reading_that_brings_them(site: Site) -> None:
    await site.rounds(10, requests=50)
    assert site.woken == [KEY]


async def test_figures_that_can_no_longer_be_relied_on_are_told_at_once(site: Site) -> None:
    site.metrics.silent.add("*")
    while site.reader.fresh(KEY):
        assert not site.woken
        await site.rounds(10)
    assert site.woken[0] == KEY
