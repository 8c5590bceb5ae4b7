"""Fifty engines with published step times and a hidden error of up to 25 %: what is learned of them."""

from __future__ import annotations

import math
from functools import cache
from random import Random
from statistics import median

import pytest

from berth.core.calibration.diagnose import Cause, diagnose
from berth.core.calibration.learn import Calibration
from berth.core.calibration.residuals import level
from berth.core.calibration.shrink import Place
from tests.unit.calibration.plants import PROMPT, SETUPS, Setup, serve, setup

PLANTS = 50
FEW = 10
CAUSES: tuple[Cause, ...] = ("SlowGroup", "SlowPool", "Overload", "LongerPrompts", "None")


class Drawn:
    """One engine of the fifty, and what goes wrong with it."""

    def __init__(self, number: int) -> None:
        random = Random(number)
        self.number = number
        self.setup: Setup = setup(number % len(SETUPS))
        self.hidden = random.uniform(0.75, 1.25)
        self.rate = self.setup.usual * random.uniform(0.5, 1.0) / 1.3
        self.worse = random.uniform(1.35, 1.6)
        self.place = Place("p", self.setup.gpu, self.setup.layout)

    def level(self, slowness: float = 1.0, rate: float = 1.0, prompt: float = 1.0, seed: int = 0) -> float:
        moments = serve(
            self.setup, self.hidden * slowness, self.rate * rate, prompt=prompt, seed=1000 * self.number + seed
        )
        found = level(moments, self.setup.predict(PROMPT * prompt), self.setup.point)
        assert found is not None
        return found

    def off(self, rate: float) -> float:
        """Logarithm of the mean step time at another load over the predicted one, as it is."""
        moments = serve(self.setup, self.hidden, self.rate * rate, seed=1000 * self.number + 7)
        assert moments.means is not None
        decodes, context, prefill, seconds = moments.means
        return math.log(seconds / self.setup.seconds(PROMPT, decodes, context, prefill))


@cache
def drawn(number: int) -> tuple[Drawn, float]:
    """With its level while all is well."""
    plant = Drawn(number)
    return plant, plant.level()


@pytest.mark.parametrize("plants", [FEW, pytest.param(PLANTS, marks=pytest.mark.slow)])
def test_the_right_cause_is_named(plants: int) -> None:
    wrong = []
    for number in range(plants):
        plant, usual = drawn(number)
        cause = CAUSES[number % len(CAUSES)]
        rate = plant.worse if cause == "Overload" else 1.0
        prompt = plant.worse if cause == "LongerPrompts" else 1.0
        slow = plant.worse if cause == "SlowPool" else 1.0
        one = plant.worse if cause == "SlowGroup" else slow
        groups = {
            "g1": plant.level(one, rate, prompt, seed=1),
            "g2": plant.level(slow, rate, prompt, seed=2),
            "g3": plant.level(slow, rate, prompt, seed=3),
        }
        found = diagnose(groups, "p", usual, math.log(rate), math.log(prompt))
        subject = {"SlowGroup": "g1", "SlowPool": "p"}.get(cause, found.subject)
        if (found.cause, found.subject) != (cause, subject):
            wrong.append((number, cause, found))
    assert wrong == []


@pytest.mark.parametrize("plants", [FEW, pytest.param(PLANTS, marks=pytest.mark.slow)])
def test_after_an_hour_predictions_are_closer_at_other_loads(plants: int) -> None:
    before, after = [], []
    for number in range(plants):
        plant, usual = drawn(number)
        learned = Calibration().learned(plant.place, usual, 0.0)
        later = plant.off(1.6)
        before.append(abs(later))
        after.append(abs(later - learned.belief(plant.place, 0.0).mean))
    assert median(after) < 0.3 * median(before)
    assert max(after) < 0.15
    assert sum(a < b for a, b in zip(after, before, strict=True)) >= 0.8 * plants


def test_most_of_what_is_learned_of_a_pool_is_not_held_against_it() -> None:
    """Another pool of the same GPUs is believed to be slow too: at most a third of the level speaks for leaving."""
    for number in range(FEW):
        plant, usual = drawn(number)
        learned = Calibration().learned(plant.place, usual, 0.0)
        elsewhere = learned.belief(plant.place._replace(pool="q"), 0.0)
        assert abs(usual - elsewhere.mean) <= abs(usual) * 0.45
        assert elsewhere.spread > learned.belief(plant.place, 0.0).spread


@pytest.mark.parametrize("worse", [1.3, 1.6])
def test_what_a_pool_loses_later_is_its_own(worse: float) -> None:
    plant, usual = drawn(3)
    learned = Calibration().learned(plant.place, usual, 0.0).learned(plant.place, usual + math.log(worse), 3600.0)
    gap = learned.belief(plant.place, 3600.0).mean - learned.belief(plant.place._replace(pool="q"), 3600.0).mean
    assert gap >= math.log(worse)
