"""Between passes and the reader: whom to read, what was said last, and when something new is worth a pass.

What was said lives in this process. A restart loses it and costs a status write at most, never a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from berth.api.placement import Allocation
from berth.controller.planner import Planner
from berth.core.conditions import OBJECTIVES_MET
from berth.core.measurement.measured import Measured
from berth.core.measurement.report import SAY_SECONDS, Report, report, settled
from berth.core.measurement.tell import objectives_of
from berth.core.observed import Group, Snapshot
from berth.core.placement.current import Current, Load, load_of
from berth.core.placement.question import spec_hash
from berth.core.plan import Plan
from berth.live import Live
from berth.serving.reader import Reader
from berth.serving.sources import Leader


@dataclass
class _Said:
    """What the last pass of a deployment said."""

    report: Report
    at: float
    revision: str | None
    looked_at: float
    """When it was last compared with what is known."""


@dataclass(frozen=True)
class _Asked:
    """What the models said last of the placement in force."""

    at: float
    load: Load
    of: Hashable
    """Everything else it depends on."""
    current: Current | None


class Measuring:
    """`wake` is called with the key of a deployment whose status is to be written anew; `clock` gives Unix seconds."""

    def __init__(
        self, reader: Reader, wake: Callable[[Hashable], None], clock: Callable[[], float], live: Live | None = None
    ) -> None:
        self.live = live or Live(reader)
        self._reader = reader
        self._wake = wake
        self._clock = clock
        self._said: dict[Hashable, _Said] = {}
        self._asked: dict[Hashable, _Asked] = {}

    def measured(self, key: Hashable) -> Measured:
        return self._reader.measured(key)

    def follow(self, key: Hashable, snapshot: Snapshot, plan: Plan) -> None:
        """From now on the leaders that serve are read."""
        objectives = objectives_of(snapshot.deployment.spec.objectives)
        namespace = snapshot.deployment.metadata.namespace
        leaders = []
        for group in snapshot.groups:
            leader = group.leader
            if leader is None or not plan.judgements[group.name].serving or not _asks_for_requests(group):
                continue
            leaders.append(
                Leader(
                    uid=leader.uid,
                    restarts=leader.restarts,
                    address=leader.ip or "",
                    namespace=namespace,
                    pod=leader.name,
                    group=group.name,
                    pool=group.pool,
                    revision=group.template_hash,
                    objectives=objectives,
                )
            )
        self._reader.follow(key, leaders)
        self.live.know(snapshot.deployment.metadata.uid, key)

    def report(self, key: Hashable, snapshot: Snapshot, plan: Plan) -> Report:
        """What this pass says."""
        revision = plan.wanted.template.template_hash if plan.wanted else None
        measured = snapshot.measured or self.measured(key)
        before = self._said.get(key)
        met = before.report.met if before else _stored_verdict(snapshot)
        new = report(measured, revision, met)
        now = self._clock()
        if before is not None and before.revision == revision:
            kept = settled(before.report, new, before.at, now)
            at = before.at if kept is not new else now
            self._said[key] = _Said(kept, at, revision, now)
            return kept
        self._said[key] = _Said(new, now, revision, now)
        return new

    async def current(
        self, key: Hashable, snapshot: Snapshot, allocation: Allocation, planner: Planner
    ) -> Current | None:
        """What the placement in force is expected to do with the traffic of now, or with the last that was known.

        The models are asked when the traffic changed by more than a tenth, and at most once a minute. None before the
        first measurement.
        """
        deployment = snapshot.deployment
        of = (allocation, spec_hash(deployment.spec))
        before = self._asked.get(key)
        known = before.current if before is not None and before.of == of else None
        load = load_of(snapshot.measured, deployment)
        if load is None:
            return known
        now = self._clock()
        if before is not None and before.of == of and (now - before.at < SAY_SECONDS or load.near(before.load)):
            return known
        found = await planner.current(snapshot, allocation, load)
        self._asked[key] = _Asked(now, load, of, found)
        return found

    def news(self, key: Hashable) -> None:
        """A leader of the deployment was read, or could not be: wake it if there is something to say."""
        said = self._said.get(key)
        if said is None:
            return
        now = self._clock()
        if not self._may_have_changed(key, said, now) and self._reader.fresh(key) == said.report.fresh:
            return
        said.looked_at = now
        new = report(self._reader.measured(key), said.revision, said.report.met)
        if settled(said.report, new, said.at, now) is not said.report:
            self._wake(key)

    def _may_have_changed(self, key: Hashable, said: _Said, now: float) -> bool:
        """For little. Thousands of deployments without a request would take all of a core otherwise."""
        if said.report.felt.ttft_p95 is not None:
            return now - said.at >= SAY_SECONDS
        if said.report.problem or now - said.looked_at >= SAY_SECONDS:
            return True
        return self._reader.answered_since(key, said.looked_at)

    def forget(self, key: Hashable) -> None:
        """The deployment is gone."""
        self._said.pop(key, None)
        self._asked.pop(key, None)
        self._reader.forget(key)
        self.live.forget(key)


def _asks_for_requests(group: Group) -> bool:
    """It has an address, and the label that brings it requests."""
    leader = group.leader
    return leader is not None and bool(leader.ip) and leader.serving and not leader.deleting and not leader.ended


def _stored_verdict(snapshot: Snapshot) -> bool | None:
    """What an earlier process said of the objectives."""
    for condition in (snapshot.raw.get("status") or {}).get("conditions") or ():
        if condition.get("type") == OBJECTIVES_MET:
            return {"True": True, "False": False}.get(str(condition.get("status")))
    return None
