"""One look at a deployment that runs. Pure: the same situation gives the same answer.

    reading -> levels of groups -> diagnosis, calibration -> number of groups -> stay, move or advise

Without a reading nothing is learned, scaled or moved: everything stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Any, Final

from berth.api.common import format_duration
from berth.api.placement import Allocation
from berth.core.calibration.diagnose import Diagnosis, diagnose
from berth.core.calibration.learn import TOLERANCE, Calibration
from berth.core.calibration.residuals import OperatingPoint, levels, prediction
from berth.core.calibration.shrink import LONGEST, Belief, Place
from berth.core.measurement.samples import StepMoments
from berth.core.moves import rules
from berth.core.moves.decision import Advise, Hold, Move, Verdict
from berth.core.moves.identity import move_id
from berth.core.moves.weigh import Option, Weighed, weigh
from berth.core.placement.decide import recorded
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question, measured_traffic, with_load
from berth.core.placement.size import HEADROOM, groups_for_load, groups_wanted, most_groups, uneven
from berth.core.placement.supply import Supply
from berth.core.scaling import FAST_BURN, Bounds, Demand, Scaling, Sized, scale
from berth.core.steering.day import DAY, Day
from berth.core.steering.reading import Reading, Span
from berth.estimator.latency import Latency, Objectives
from berth.estimator.memory import UNSUPPORTED

REVIEW_SECONDS: Final = 900.0
"""Time between two weighings of a deployment that is well: prices and capacity change slowly, models take a while."""
BREACH_REVIEW_SECONDS: Final = 300.0
FEWEST_SECONDS: Final = 180.0
"""Measured time below which a rate is chance."""
_SLOW_ENOUGH: Final = 900.0
"""Below which the slow window is as young as the fast one, and its mean no better."""
NEARLY: Final = 0.9
"""Share of an objective at which one request alone nearly misses it: within the error of the models. More groups bring
latency down to that of one request alone, and no further."""
_OUT_OF_REACH: Final = 1.5
"""What groups are counted by then: latency against that of one request alone. Queues stay short all the same."""
_ALONE: Final = 1e-3
"""Requests per second of a group that hardly ever serves two at once."""
_LOAD_GRID: Final = 0.05
_BELIEF_GRID: Final = 0.02
_NODES_COUNTED: Final = 4
RUNNING_TWICE_SECONDS: Final = 1200.0
"""Start, warm-up and verdict of a move, where nothing better is known."""


@dataclass(frozen=True)
class Reviewed:
    """The last close look, kept between looks by whoever takes them; losing it costs time only."""

    at: float
    verdict: Verdict
    diagnosis: Diagnosis
    weighed: Weighed | None = None
    weighed_for: tuple[Any, ...] = ()
    """What the weighing depends on."""


@dataclass(frozen=True)
class Situation:
    """Everything one look is made on. Times in Unix seconds."""

    now: float
    uid: str
    asked: Question
    """As the spec has it."""
    supplies: Mapping[str, Supply]
    """Every pool that can be read, without what the deployment's own groups take."""
    in_force: Allocation
    groups_for_traffic: int
    policy: rules.Policy
    past: rules.Past
    state: rules.State
    """`measured`, `effective`, `misses`, `lasted` and `day_known` are filled in from the reading."""
    reading: Reading | None
    day: Day
    calibration: Calibration
    changed_at: float
    """When the placement or its number of groups changed last."""
    scales: bool = True
    """scaling.mode is Auto and changes are allowed."""
    nodes: tuple[str, ...] = ()
    """That the groups in force stand on."""
    trial: Allocation | None = None
    """What a move under way goes to."""
    neighbours: float | None = None
    """By how much other deployments on the same pool became slower, as a logarithm."""
    reviewed: Reviewed | None = None
    running_twice: float = RUNNING_TWICE_SECONDS
    pace: float = 1.0
    """Of the clock that all times here are on, against the one on the wall."""


@dataclass(frozen=True)
class Steering:
    """What comes of a look."""

    sized: Sized
    verdict: Verdict
    calibration: Calibration
    day: Day
    diagnosis: Diagnosis = field(default_factory=lambda: Diagnosis("None"))
    scaled: str = ""
    """Why the number of groups is another; empty where it is not."""
    weighed: Weighed | None = None
    """Where the models were asked at this look."""
    reviewed: Reviewed | None = None
    out_of_reach: str = ""
    """Which objective no number of groups meets where they run; empty where all can be met."""


def steer(situation: Situation, memory: Memory) -> Steering:
    """Learn, diagnose, scale, decide."""
    reading = situation.reading
    if reading is None or reading.fast.seconds < FEWEST_SECONDS:
        current = Sized(situation.groups_for_traffic, situation.in_force.groups)
        state = replace(situation.state, measured=reading is not None, effective=0.0)
        hold = rules.gate(situation.now, situation.policy, situation.past, state)
        assert hold is not None, "nothing was measured"
        return Steering(current, hold, situation.calibration, situation.day, reviewed=situation.reviewed)
    if not _known(situation, memory):
        current = Sized(situation.groups_for_traffic, situation.in_force.groups)
        return Steering(current, Hold("Unknown"), situation.calibration, situation.day)
    return _Look(situation, reading, memory).steering()


def _known(situation: Situation, memory: Memory) -> bool:
    """Whether the models can say anything of what runs: the spec may have been edited since."""
    layout, supplies = Layout.of(situation.in_force), situation.supplies
    if layout.pool not in supplies or not supplies[layout.pool].gpu.memory_gib:
        return False
    if layout.variant not in {variant.name for variant in situation.asked.variants}:
        return False
    account = Estimates(situation.asked, supplies, memory).fit(layout)
    return account.verdict != UNSUPPORTED and account.kv_tokens_mid > 0


class _Beliefs:
    """What is believed of any layout by what was learned up to now, this look included.

    It is remembered with what was weighed by it, so it must not hold the look itself: each would hold the one before.
    """

    def __init__(self, calibration: Calibration, supplies: Mapping[str, Supply], now: float) -> None:
        self._calibration, self._now = calibration, now
        self._gpus = {name: supply.gpu.name for name, supply in supplies.items()}
        self._known: dict[Layout, Belief] = {}

    def __call__(self, layout: Layout) -> Belief:
        if layout not in self._known:
            self._known[layout] = self._calibration.belief(_place(layout, self._gpus[layout.pool]), self._now)
        return self._known[layout]


def _place(layout: Layout, gpu: str) -> Place:
    split = f"{layout.variant} tp{layout.tensor_parallel} pp{layout.pipeline_parallel}"
    return Place(layout.pool, gpu, split)


class _Look:
    """One look with fresh measurements."""

    def __init__(self, situation: Situation, reading: Reading, memory: Memory) -> None:
        self.situation, self.reading, self.memory = situation, reading, memory
        self.layout = Layout.of(situation.in_force)
        self.asked = situation.asked
        slow = reading.slow
        traffic = self.asked.traffic
        self.slow_load, self.fast_load = _load(self.asked, slow), _load(self.asked, reading.fast)
        measured = measured_traffic(traffic, max(self.slow_load, 1e-6), slow.input_tokens, slow.output_tokens)
        self.measured = replace(self.asked, traffic=measured)
        self.day = situation.day.seen(situation.now, self.slow_load, slow.seconds)
        self.state = replace(
            situation.state,
            measured=True,
            effective=slow.effective,
            misses=slow.misses,
            lasted=slow.seconds,
            needed=self._needed(),
            day_known=self.day.peak(situation.now) is not None,
        )
        self.uncalibrated = Estimates(self.asked, situation.supplies, memory)
        self.due, self.settled = self._due(), True
        self.out_of_reach = ""
        self.calibration, self.levels = self._learn() if self.due else (situation.calibration, {})
        beyond = bool(self.levels) and median_low(self.levels.values()) > LONGEST
        too_slow = self.calibration.beyond_belief(situation.now)
        self.state = replace(self.state, settled=self.settled, beyond_belief=beyond, too_slow=too_slow)
        self.believe = _Beliefs(self.calibration, situation.supplies, situation.now)
        self.evaluation = self._estimates(self.measured)

    def _estimates(self, asked: Question) -> Estimates:
        """With what is believed now."""
        believe = self.believe
        return Estimates(asked, self.situation.supplies, self.memory, lambda layout: believe(layout).factor())

    def _needed(self) -> int:
        """Groups that must serve, as an update has it."""
        least = self.asked.spec.replica_groups.min_available
        return min(max(least, self.situation.groups_for_traffic), self.situation.in_force.groups)

    def steering(self) -> Steering:
        current = Sized(self.situation.groups_for_traffic, self.situation.in_force.groups)
        before = self.situation.reviewed
        why = self._diagnose() if self.due or before is None else before.diagnosis
        alone = self._alone()
        self.out_of_reach = _beyond(alone, self.measured.objectives)
        self.state = replace(self.state, out_of_reach=bool(self.out_of_reach))
        scaling = self._scale(current, why, alone)
        day = self.day
        if scaling.sized.groups > current.groups:
            day = replace(day, grown_at=self.situation.now)
        verdict, weighed, reviewed = self._decide(why)
        return Steering(
            scaling.sized,
            verdict,
            self.calibration,
            day,
            why,
            scaling.reason,
            weighed=weighed,
            reviewed=reviewed,
            out_of_reach=self.out_of_reach,
        )

    def _due(self) -> bool:
        """Whether it is time for a close look; what breaks fast is looked at each time."""
        before, fast = self.situation.reviewed, self.reading.fast
        if self.situation.trial is not None:
            return True
        if before is None or isinstance(before.verdict, Move) or fast.misses >= FAST_BURN * rules.ALLOWED_MISSES:
            return True
        pause = BREACH_REVIEW_SECONDS if self.state.breached else REVIEW_SECONDS
        return self.situation.now - before.at >= pause

    # --- learning -----------------------------------------------------------------------------------------------------
    def place(self, layout: Layout) -> Place:
        return _place(layout, self.situation.supplies[layout.pool].gpu.name)

    def _learn(self) -> tuple[Calibration, dict[str, float]]:
        """The level of each group, and what is remembered after this hour."""
        situation, reading = self.situation, self.reading
        if situation.trial is not None:
            return self._learn_of_trial(Layout.of(situation.trial)), {}
        levels = self._levels(self.layout, {**reading.steps, "": reading.recent})
        recent = levels.pop("", None)
        if not levels or situation.state.changing or situation.state.moving:
            return situation.calibration, levels
        found = median_low(levels.values())
        self.settled = recent is None or abs(recent - found) <= TOLERANCE
        if reading.slow.seconds < DAY / 48:
            return situation.calibration, levels
        return situation.calibration.learned(self.place(self.layout), found, situation.now), levels

    def _learn_of_trial(self, layout: Layout) -> Calibration:
        """What a move is taken back for is known of the pool from then on."""
        calibration, supplies = self.situation.calibration, self.situation.supplies
        if layout.pool not in supplies:
            return calibration
        found = self._levels(layout, {"": self.reading.trial}).get("")
        return calibration if found is None else calibration.learned(self.place(layout), found, self.situation.now)

    def _levels(self, layout: Layout, steps: Mapping[str, StepMoments]) -> dict[str, float]:
        """Of groups of a layout, where they took enough steps."""
        if not self.uncalibrated.fit(layout).kv_tokens_mid:
            return {}
        traffic = self.asked.traffic
        usual = self.uncalibrated.capacity(layout, "screen").latency.in_flight
        if not usual < math.inf:
            return {}
        at = OperatingPoint.of(usual, traffic.input_tokens.mean, traffic.output_tokens.mean)
        prompt = self.reading.slow.input_tokens or traffic.input_tokens.mean
        predict = prediction(self.uncalibrated.engine(layout), prompt * (1 - traffic.cached_input_fraction))
        return levels(steps, predict, at)

    def _diagnose(self) -> Diagnosis:
        """Of the placement in force, against what its groups were planned for."""
        known = self.situation.calibration.of(self.place(self.layout))
        settled = known.settled if known is not None else 0.0
        carried = self._carried(self.asked)
        requests = math.log(max(self.slow_load, 1e-9) / carried) if carried > 0 else 0.0
        now = self._carried(self.measured)
        work = math.log(carried / now) if now > 0 and carried > 0 else 0.0
        return diagnose(self.levels, self.layout.pool, settled, requests, work, self.situation.neighbours)

    def _carried(self, asked: Question) -> float:
        """Load that the groups in force carry with the lengths of `asked`, as they were planned."""
        evaluation = self._estimates(asked)
        groups = self.situation.in_force.groups
        return groups / uneven(groups) * HEADROOM * evaluation.capacity(self.layout, "screen").load

    # --- scaling ------------------------------------------------------------------------------------------------------
    def _alone(self) -> Latency:
        """Of one request at a time."""
        return self.evaluation.latency(self.layout, 1.0 if self.asked.traffic.closed else _ALONE, "screen")

    def _scale(self, current: Sized, why: Diagnosis, alone: Latency) -> Scaling:
        situation = self.situation
        if not situation.scales or situation.state.moving or situation.policy.fixed:
            return Scaling(current)
        each = self._group_capacity(alone)
        if each <= 0:  # the longest request does not fit, or nothing is served at all
            return Scaling(current)
        supply, fast = situation.supplies[self.layout.pool], self.reading.fast
        bounds = Bounds(
            for_traffic=lambda load: groups_for_load(load, each),
            wanted=lambda groups: groups_wanted(self.measured, supply, self.layout, groups),
            most=most_groups(self.measured, supply, self.layout),
        )
        peak = self.day.peak(situation.now) if self.due and not self.out_of_reach else None
        if situation.now - self.day.grown_at < DAY:
            peak = None  # what made the groups grow is not over before a day without it
        return scale(
            current,
            Demand(
                self.slow_load if self.reading.slow.seconds >= _SLOW_ENOUGH else 0.0,
                self.fast_load,
                peak,
                fast.misses / rules.ALLOWED_MISSES,
                fast.effective,
            ),
            bounds,
            busy=1.0 if self.asked.traffic.closed else self.asked.traffic.peak_to_mean,
            settled_for=0.0
            if situation.state.changing or situation.state.waiting
            else situation.now - situation.changed_at,
            helps=why.cause != "SlowGroup" and not self.out_of_reach,
        )

    def _group_capacity(self, alone: Latency) -> float:
        """Of one group at the objectives; those that are out of reach are given up for what is in it."""
        if not self.out_of_reach:
            return self.evaluation.capacity(self.layout, "simulate").load
        objectives = self.measured.objectives
        attainable = Objectives(
            max(objectives.time_to_first_token, _OUT_OF_REACH * alone.ttft_p95),
            max(objectives.time_per_output_token, _OUT_OF_REACH * alone.tpot_p95),
        )
        asked = replace(self.measured, objectives=attainable)
        return self._estimates(asked).capacity(self.layout, "simulate").load

    # --- moving -------------------------------------------------------------------------------------------------------
    def _decide(self, why: Diagnosis) -> tuple[Verdict, Weighed | None, Reviewed | None]:
        situation, before = self.situation, self.situation.reviewed
        hold = rules.gate(situation.now, situation.policy, situation.past, self.state)
        if not self.due and before is not None:
            return hold or before.verdict, None, before
        if hold is not None:
            known = Reviewed(situation.now, hold, why)
            return (
                hold,
                None,
                known if before is None else replace(before, at=situation.now, verdict=hold, diagnosis=why),
            )
        found, weighed_for = self._weigh()
        chosen = rules.best(situation.now, situation.policy, situation.past, self.state, found, situation.in_force, why)
        verdict: Verdict
        if isinstance(chosen, Hold):
            verdict = chosen
        else:
            move = self._move(found, *chosen, why)
            verdict = move if situation.policy.mode == "Auto" else Advise(move)
        return verdict, found, Reviewed(situation.now, verdict, why, found, weighed_for)

    def _weigh(self) -> tuple[Weighed, tuple[Any, ...]]:
        """Anew only if something is another than the last time: traffic, prices, room, or what is believed."""
        situation = self.situation
        highest = max(self.slow_load, self.day.highest(), 1e-6)
        load = math.exp(math.ceil(math.log(highest) / _LOAD_GRID) * _LOAD_GRID)
        asked = _loaded(self.measured, load)
        pools = tuple((name, *_standing(supply), self._seen(name)) for name, supply in situation.supplies.items())
        depends_on = (
            asked.traffic,
            situation.in_force,
            situation.nodes,
            situation.running_twice,
            situation.policy.surge,
            pools,
        )
        before = situation.reviewed
        if before is not None and before.weighed is not None and before.weighed_for == depends_on:
            return before.weighed, depends_on
        found = weigh(
            asked,
            situation.supplies,
            situation.in_force,
            situation.nodes,
            self.believe,
            self.memory,
            situation.running_twice if situation.policy.surge else 0.0,
            both_sides=situation.policy.surge,
        )
        return found, depends_on

    def _seen(self, pool: str) -> tuple[int, ...]:
        """What is believed of the pool, to a few per cent."""
        gpu = self.situation.supplies[pool].gpu.name
        belief = self.calibration.belief(Place(pool, gpu, ""), self.situation.now)
        mine = self.believe(self.layout) if pool == self.layout.pool else belief
        return tuple(round(each / _BELIEF_GRID) for each in (belief.mean, belief.spread, mine.mean))

    def _move(self, found: Weighed, option: Option, cause: str, why: Diagnosis) -> Move:
        situation, candidate = self.situation, option.candidate
        assert candidate.capacity is not None
        reason = _words(option, cause, found, why)
        decision = recorded(
            found.asked, situation.supplies, found.evaluation, found.answer, candidate, candidate.groups, reason
        )
        assert decision.allocation is not None
        pay_back = option.pay_back
        wait = situation.policy.cooldown
        if cause == "Cost" and pay_back is not None:
            wait = max(wait, 3 * pay_back)
        return Move(
            id=move_id(situation.uid, situation.in_force, decision.allocation, situation.past.last),
            start=situation.in_force,
            to=decision.allocation,
            cause="Cost" if cause == "Cost" else "Objectives",
            reason=reason,
            decision=decision,
            needed=candidate.needed,
            capacity_from=self.evaluation.capacity(self.layout, "simulate").requests_per_second,
            capacity_to=candidate.capacity.requests_per_second,
            cooldown=wait,
            swap=not situation.policy.surge,
            leaves=self.state.needed,
            saving=option.saving,
            saving_at_worst=option.saving_at_worst,
            price=option.price,
            pay_back=pay_back,
        )


def _standing(supply: Supply) -> tuple[Any, ...]:
    """What of a pool decides about moves: price, and room up to a few nodes."""
    free = supply.free_per_node()
    return supply.price, supply.why_not, tuple((gpus, min(count, _NODES_COUNTED)) for gpus, count in free.items())


def _loaded(asked: Question, load: float) -> Question:
    return replace(asked, traffic=with_load(asked.traffic, load))


def _load(asked: Question, span: Span) -> float:
    """In the unit of the question: requests per second, for closed traffic clients."""
    return span.in_flight if asked.traffic.closed else span.requests_per_second


def _beyond(alone: Latency, objectives: Objectives) -> str:
    """Which objective one request alone misses, or nearly, and what would help; empty where there is none."""
    excess, bound = objectives.excess(alone.ttft_p95, alone.tpot_p95)
    if excess <= NEARLY or not alone.stable:
        return ""
    if bound == "timeToFirstToken":
        name, reached, wanted = "TTFT", alone.ttft_p95, objectives.time_to_first_token
    else:
        name, reached, wanted = "TPOT", alone.tpot_p95, objectives.time_per_output_token
    verb = "misses" if reached > wanted else "nearly misses"
    words = f"one request alone {verb} the objective, {name} p95 {format_duration(wanted)}"
    words += f", with {format_duration(reached)}" if reached < math.inf else ""
    return f"{words}: more groups do not help; relax objectives.{bound}.p95, or let it run elsewhere"


def _words(option: Option, cause: str, found: Weighed, why: Diagnosis) -> str:
    candidate = option.candidate
    there = f"{candidate.layout} x {candidate.groups}"
    if cause == "Objectives":
        cost = f" at {candidate.cost.added_per_hour:.2f} per hour" if candidate.cost else ""
        return f"{why.message}; {there} meets the objectives{cost}"
    saving, at_worst, hours = option.saving or 0.0, option.saving_at_worst or 0.0, (option.pay_back or 0.0) / 3600
    of = found.stay_per_hour or 0.0
    return f"{there} saves {saving:.2f} of {of:.2f} per hour ({at_worst:.2f} at worst), pays back within {hours:.1f} h"
