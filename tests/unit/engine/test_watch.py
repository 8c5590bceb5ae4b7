"""The watch: hung, slow, silent, failing and starved engines told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from berth.engine.contract import Exit
from berth.engine.watch import ProgressWatch, Verdict


class Engine:
    """A model's state, observed every quarter second."""

    def __init__(self) -> None:
        self.watch = ProgressWatch(hang_after=5.0, first_token_timeout=60.0, canary_every=10.0)
        self.now = 1000.0
        self.state: dict[str, Any] = {
            "steps": 0,
            "tokens": 0,
            "in_flight": 0,
            "written": 0.0,
            "failures": {"engine": 0},
        }

    def run(self, seconds: float, *, tick: float = 0.25, canary: bool = False, **rates: float) -> Verdict | None:
        """Counters grow by `rates` a second; the model reports unless `written` is 0."""
        rates = {"written": 1.0, **rates}
        exact = {name: float(self.state[name]) for name in rates}
        end = self.now + seconds
        while self.now < end:
            self.now += tick
            for name, rate in rates.items():
                exact[name] += rate * tick
                self.state[name] = exact[name] if name == "written" else int(exact[name])
            if verdict := self.watch.observe(self.now, self.state, canary_out=canary):
                return verdict
        return None


@pytest.fixture
def engine() -> Engine:
    engine = Engine()
    assert engine.run(2, tokens=20, steps=20) is None
    return engine


def test_frozen_work_is_a_hang_after_the_limit(engine: Engine) -> None:
    engine.state["in_flight"] = 3
    started = engine.now
    verdict = engine.run(60)
    assert verdict is not None
    assert verdict.exit is Exit.HANG
    assert engine.now - started == pytest.approx(5.0, abs=0.3)
    assert "3 requests in flight" in verdict.words


@pytest.mark.parametrize("moving", ["steps", "tokens"])
def test_an_engine_that_moves_at_all_is_never_ended(engine: Engine, moving: str) -> None:
    engine.state["in_flight"] = 500
    assert engine.run(600, **{moving: 0.25}) is None


def test_an_idle_engine_is_asked_but_not_ended(engine: Engine) -> None:
    assert engine.run(9) is None
    assert not engine.watch.wants_canary()
    assert engine.run(600) is None
    assert engine.watch.wants_canary()


def test_an_unanswered_canary_is_a_hang_even_if_it_never_reached_the_model(engine: Engine) -> None:
    assert engine.run(30) is None
    started = engine.now
    verdict = engine.run(60, canary=True)
    assert verdict is not None
    assert (verdict.exit, round(engine.now - started)) == (Exit.HANG, 5)


def test_a_silent_process_is_a_hang_even_when_idle(engine: Engine) -> None:
    verdict = engine.run(60, written=0)
    assert verdict is not None
    assert "not reported for 5" in verdict.words


def test_progress_forgives(engine: Engine) -> None:
    engine.state["in_flight"] = 1
    for _ in range(20):
        assert engine.run(4.5) is None
        assert engine.run(0.5, tokens=4) is None


def test_a_watcher_that_was_stopped_does_not_count_the_gap(engine: Engine) -> None:
    engine.state["in_flight"] = 1
    engine.now += 3600
    assert engine.run(0.25) is None
    assert engine.watch.frozen_for <= 1.0
    assert engine.run(3) is None


def test_the_first_token_has_a_longer_limit() -> None:
    engine = Engine()
    assert engine.watch.wants_canary()
    engine.state["in_flight"] = 1
    assert engine.run(59, canary=True) is None
    verdict = engine.run(10, canary=True)
    assert verdict is not None
    assert verdict.exit is Exit.FIRST_TOKEN_TIMEOUT


def test_a_failed_request_raises_suspicion_until_a_token_comes(engine: Engine) -> None:
    engine.state["failures"] = {"engine": 1}
    engine.run(0.25)
    assert engine.watch.wants_canary()
    engine.run(0.25, tokens=8)
    assert not engine.watch.wants_canary()


def test_three_failed_canaries_in_a_row_lose_the_engine(engine: Engine) -> None:
    fail: Callable[[], None] = engine.watch.canary_failed
    fail(), fail(), engine.run(1, tokens=8), fail(), fail()
    assert engine.run(1) is None
    fail()
    verdict = engine.run(1)
    assert verdict is not None
    assert verdict.exit is Exit.ENGINE_LOST
