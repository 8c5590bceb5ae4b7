"""What a reader knows of deployments while leaders come, go, hang, restart and change their promises."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from berth.core.measurement.histogram import Histogram
from berth.core.measurement.samples import Objectives, Sample
from berth.core.measurement.series import WARM_UP_SECONDS
from berth.errors import Transient
from berth.serving.reader import KEPT_SECONDS, MOST_ENDED, Reader
from berth.serving.sources import Leader, Tell
from tests.unit.serving.pages import leader

EDGES = (0.5, 1.5)
WANTED = Objectives(first_token=1.5)


@dataclass
class Leaders:
    """A source by script: requests served so far, by pod UID."""

    now: float = 1_000_000.0
    served: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Requests within 0.5 s, within 1.5 s, and slower."""
    silent: set[str] = field(default_factory=set)
    edges: tuple[float, ...] = EDGES
    queues: bool = False
    """Leaders tell how long requests waited, a quarter of a second at most."""
    asked: list[str] = field(default_factory=list)
    wanted: list[Objectives] = field(default_factory=list)

    async def read(self, leaders: Sequence[Leader], tell: Tell) -> None:
        for each in leaders:
            self.asked.append(each.uid)
            if each.uid in self.silent:
                tell(each, "silent in this test")
                continue
            counts = self.served.get(each.uid, (0, 0, 0))
            total = float(sum(counts))
            told = Sample(
                self.now,
                Histogram(self.edges, counts, total),
                queue=Histogram((0.25,), (round(total), 0), 0.1 * total) if self.queues else None,
                counters={"requests": total, "tokens": 20 * total},
                running=1,
                waiting=2,
                kv_use=0.25,
            )
            tell(each, told)

    async def want(self, leader: Leader) -> None:
        self.wanted.append(leader.objectives)
        raise Transient("does not listen")

    async def close(self) -> None:
        pass

    def serve(self, uid: str, quick: int, good: int = 0, slow: int = 0) -> None:
        before = self.served.get(uid, (0, 0, 0))
        self.served[uid] = (before[0] + quick, before[1] + good, before[2] + slow)


@dataclass
class Scene:
    leaders: Leaders = field(default_factory=Leaders)
    news: list[Hashable] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = Reader(self.leaders, self.news.append, lambda: self.leaders.now)

    async def pass_time(self, seconds: float, *, serve: str = "", quick: int = 10, slow: int = 0) -> None:
        """Rounds of ten seconds; in each the leader `serve` answers requests."""
        for _ in range(round(seconds / 10)):
            self.leaders.now += 10
            if serve:
                self.leaders.serve(serve, quick, slow=slow)
            await self.reader.round()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def one(number: int = 0, **fields: object) -> Leader:
    return leader("10.0.0.1", number, **{"objectives": WANTED, **fields})


async def test_what_is_served_after_the_warm_up_is_counted_exactly(scene: Scene) -> None:
    scene.reader.follow("k", [one()])
    await scene.pass_time(WARM_UP_SECONDS, serve="u0", slow=50)
    await scene.pass_time(40, serve="u0", slow=2)
    measured = scene.reader.measured("k")
    met = measured.deployment.fast.tally.first_token_met
    assert (met.requests, met.low, met.high) == (48, 40, 40)
    assert measured.deployment.fast.requests_per_second == pytest.approx(1.2)
    assert measured.fresh
    assert measured.in_flight == 3
    assert [(group.name, group.pool) for group in measured.groups] == [("g0", "h100")]


async def test_groups_of_two_revisions_are_told_apart_and_together(scene: Scene) -> None:
    scene.reader.follow("k", [one(0), one(1, revision="new", pool="a100")])
    for _ in range(8):
        scene.leaders.serve("u1", 5)
        await scene.pass_time(10, serve="u0")
    measured = scene.reader.measured("k")
    counts = {name: each.fast.tally.requests for name, each in measured.revisions.items()}
    assert counts == {"r": 50, "new": 25}
    assert measured.deployment.fast.tally.requests == 75
    assert {pool: each.windows.fast.tally.requests for pool, each in scene.reader.pools().items()} == {
        "h100": 50,
        "a100": 25,
    }


async def test_nobody_else_is_read_and_those_who_left_count_for_an_hour(scene: Scene) -> None:
    scene.reader.follow("k", [one(0), one(1)])
    await scene.pass_time(100, serve="u0")
    scene.reader.follow("k", [one(1)])
    scene.leaders.asked.clear()
    await scene.pass_time(100)
    assert set(scene.leaders.asked) == {"u1"}
    measured = scene.reader.measured("k")
    assert measured.deployment.slow.tally.requests == 70
    assert [(group.name, group.serving) for group in measured.groups] == [("g0", False), ("g1", True)]
    scene.leaders.now += KEPT_SECONDS + 200
    scene.reader.follow("k", [])
    assert scene.reader.keys() == ()


async def test_a_deployment_that_is_gone_is_forgotten(scene: Scene) -> None:
    scene.reader.follow("k", [one()])
    await scene.pass_time(50)
    scene.reader.forget("k")
    assert scene.reader.keys() == ()
    assert scene.reader.measured("k").groups == ()
    assert scene.reader.pools() == {}


async def test_a_silent_leader_makes_everything_stale_and_says_why(scene: Scene) -> None:
    scene.reader.follow("k", [one(0), one(1)])
    await scene.pass_time(60)
    assert scene.reader.fresh("k")
    scene.leaders.silent.add("u1")
    await scene.pass_time(30)
    assert scene.reader.fresh("k"), "three readings may be missed"
    await scene.pass_time(10)
    measured = scene.reader.measured("k")
    assert not measured.fresh
    assert [(group.name, group.problem) for group in measured.missing] == [("g1", "silent in this test")]
    scene.leaders.silent.clear()
    await scene.pass_time(10)
    assert scene.reader.fresh("k")


async def test_a_group_that_just_began_to_serve_is_given_time(scene: Scene) -> None:
    scene.reader.follow("k", [one(0)])
    await scene.pass_time(60)
    scene.leaders.silent.add("u1")
    scene.reader.follow("k", [one(0), one(1)])
    assert scene.reader.fresh("k")
    await scene.pass_time(40)
    assert not scene.reader.fresh("k")


async def test_after_a_start_everybody_has_to_be_heard_first(scene: Scene) -> None:
    scene.leaders.silent.add("u1")
    scene.reader.follow("k", [one(0), one(1)])
    await scene.pass_time(10)
    assert not scene.reader.fresh("k")


async def test_a_restarted_engine_is_counted_anew_without_its_warm_up(scene: Scene) -> None:
    scene.reader.follow("k", [one()])
    await scene.pass_time(60, serve="u0")
    before = scene.reader.measured("k").deployment.fast.tally.requests
    scene.leaders.served["u0"] = (3, 0, 0)
    scene.reader.follow("k", [one(restarts=1)])
    await scene.pass_time(WARM_UP_SECONDS, serve="u0")
    assert scene.reader.measured("k").deployment.fast.tally.requests == before
    await scene.pass_time(20, serve="u0")
    measured = scene.reader.measured("k")
    assert measured.deployment.fast.tally.requests == before + 20
    assert len(measured.groups) == 1


async def test_counters_that_went_back_unseen_add_nothing(scene: Scene) -> None:
    scene.reader.follow("k", [one()])
    await scene.pass_time(60, serve="u0")
    before = scene.reader.measured("k").deployment.fast.tally.requests
    scene.leaders.served["u0"] = (0, 0, 0)
    await scene.pass_time(10, serve="u0")
    assert scene.reader.measured("k").deployment.fast.tally.requests == before
    await scene.pass_time(10, serve="u0")
    assert scene.reader.measured("k").deployment.fast.tally.requests == before + 10


async def test_a_new_objective_is_counted_from_now_on_and_asked_for_once_a_minute(scene: Scene) -> None:
    scene.reader.follow("k", [one()])
    await scene.pass_time(60, serve="u0")
    stricter = Objectives(first_token=1.0)
    scene.reader.follow("k", [one(objectives=stricter)])
    assert scene.reader.measured("k").deployment.slow.tally.requests == 0
    await scene.pass_time(60)
    await asyncio.sleep(0)
    assert scene.leaders.wanted == [stricter]
    await scene.pass_time(10)
    await asyncio.sleep(0)
    assert len(scene.leaders.wanted) == 2
    assert "does not count" in scene.reader.measured("k").groups[0].problem
    scene.leaders.edges = (0.5, 1.0)
    await scene.pass_time(70, serve="u0")
    assert len(scene.leaders.wanted) == 2
    assert scene.reader.measured("k").deployment.fast.tally.first_token_met.exact


async def test_a_deployment_whose_leaders_come_and_go_stays_small(scene: Scene) -> None:
    for number in range(3 * MOST_ENDED):
        scene.reader.follow("k", [one(number)])
        await scene.pass_time(10)
    assert len(scene.reader.measured("k").groups) <= MOST_ENDED + 1


async def test_every_reading_is_news_and_a_source_that_breaks_is_tried_again(scene: Scene) -> None:
    scene.reader.follow("k", [one(0)])
    scene.reader.follow("other", [one(1)])
    await scene.pass_time(10)
    assert scene.news == ["k", "other"]
    original, scene.leaders.read = scene.leaders.read, None  # type: ignore[method-assign, assignment]
    await scene.pass_time(10)
    scene.leaders.read = original  # type: ignore[method-assign]
    await scene.pass_time(10)
    assert scene.news == ["k", "other"] * 2


async def test_a_leader_that_moves_keeps_its_figures(scene: Scene) -> None:
    scene.reader.follow("k", [one()])
    await scene.pass_time(60, serve="u0")
    scene.reader.follow("k", [replace(one(), address="10.0.0.2")])
    await scene.pass_time(10, serve="u0")
    assert scene.reader.measured("k").deployment.fast.tally.requests == 40
