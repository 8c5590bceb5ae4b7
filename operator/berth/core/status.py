"""What one pass says about a deployment: conditions, counts and the one line that tells the truth. Pure.

Status is output: the only things read back are times and the last failover. Figures that are unknown are absent ("-" in
the summary), never 0. A pass that finds nothing new builds exactly the status that is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from berth import labels
from berth.api.llmdeployment import LLMDeployment
from berth.core import conditions as c
from berth.core import resilience
from berth.core.accept import wanted_groups
from berth.core.applied import without_empty_maps
from berth.core.conditions import Condition, frozen_condition, merge
from berth.core.failover import latest
from berth.core.groups import Judgement, State
from berth.core.measurement import tell as measurement
from berth.core.measurement.report import Report
from berth.core.moves.memory import recall
from berth.core.moves.underway import moves_status, shown
from berth.core.observed import Group, Shortage, Snapshot
from berth.core.placement import tell
from berth.core.plan import Plan
from berth.core.requests import last_answer, request_status
from berth.core.timestamps import timestamp
from berth.core.wanted import Wanted

UNKNOWN = "-"
MAX_GROUPS_LISTED = 100
_MEASURED = ("measured", "predictionError")


@dataclass(frozen=True)
class Outcome:
    """What happened when the plan was carried out, beyond success."""

    shortages: Mapping[int, Shortage]
    name_conflicts: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    """Writes the API server refused for good, in its words."""


def build_status(
    snapshot: Snapshot,
    plan: Plan,
    outcome: Outcome,
    report: Report | None = None,
    predicted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole status of the deployment; `report` is what was measured, None where nobody measures.

    `predicted` is what is expected at the measured traffic; without it the figures of the decision stand.
    """
    deployment = snapshot.deployment
    stored: Mapping[str, Any] = snapshot.raw.get("status") or {}
    facts = _Facts(snapshot, plan, outcome, report)
    generation = deployment.metadata.generation
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "conditions": merge(_conditions(facts), stored.get("conditions") or (), generation, snapshot.now),
        "replicas": facts.counted,
        "readyReplicas": facts.ready,
        "selector": f"{labels.DEPLOYMENT_UID}={deployment.metadata.uid},{labels.MEMBER}={labels.LEADER}",
        "summary": _summary(facts),
        "url": f"http://{deployment.metadata.name}.{deployment.metadata.namespace}:{labels.PORT_HTTP}",
        "needed": plan.needed,
        "groupCounts": dict(sorted(Counter(state for _, state in facts.states).items())),
        "groups": _groups(facts),
    }
    spread = resilience.spread_status(snapshot, plan)
    if spread is not None:
        status["spread"] = spread
    if plan.decision is not None:
        status |= {name: part for name, part in plan.decision.status.items() if name != "placement"}
    if plan.wanted is not None:
        status["resolved"] = {"image": plan.wanted.template.image, "backend": plan.wanted.template.backend}
        status["placement"] = _placement(facts, deployment, plan.wanted, stored, predicted)
    elif stored.get("resolved"):
        status["resolved"] = stored["resolved"]
    if moves := _moves(facts):
        status["moves"] = moves
    if plan.reply is not None:
        status["request"] = request_status(snapshot, plan.reply)
    elif answer := last_answer(snapshot):
        status["request"] = dict(answer)
    failover = latest(snapshot.groups, plan.failovers)
    if failover or stored.get("lastFailover"):
        status["lastFailover"] = failover or stored["lastFailover"]
    return without_empty_maps(status)


class _Facts:
    """What conditions and summary are made of, computed once."""

    def __init__(self, snapshot: Snapshot, plan: Plan, outcome: Outcome, report: Report | None) -> None:
        self.snapshot, self.plan, self.outcome, self.report = snapshot, plan, outcome, report
        stored = snapshot.raw.get("status") or {}
        self.old_figures = report is not None and measurement.keeps_old_figures(report, stored, snapshot.now)
        self.judged: Sequence[tuple[Group, Judgement]] = [(g, plan.judgements[g.name]) for g in snapshot.groups]
        self.states = [(group.name, judgement.state.value) for group, judgement in self.judged]
        leaving = (State.FAILED, State.DRAINING)
        aside = plan.move.aside(snapshot.groups) if plan.move else frozenset()
        alive = [
            (group, judgement)
            for group, judgement in self.judged
            if group.alive and judgement.state not in leaving and group.name not in aside
        ]
        self.count = plan.wanted.count if plan.wanted else max(_asked_for(snapshot), len({g.group for g, _ in alive}))
        self.bridging = self._bridging(aside)
        serving = {group.group for group, judgement in alive if judgement.serving}
        self.ready = min(max(len(serving), self.bridging), self.count)
        self.counted = min(len({group.group for group, _ in alive}), self.count)
        self.starting = [
            (group, judgement)
            for group, judgement in alive
            if judgement.state in (State.RESERVED, State.STARTING, State.WARMING)
        ]
        self.failed = [
            (group, judgement)
            for group, judgement in self.judged
            if judgement.state is State.FAILED and self.ready < self.count and not self._replaced(group)
        ]
        self.draining = [
            group
            for group, judgement in self.judged
            if judgement.state is State.DRAINING or group in plan.rollout.retire
        ]
        self.leaving = resilience.leaving(plan)
        self.missing = self.count - self.counted
        self.shortage = next(iter(outcome.shortages.values()), None) or plan.rollout.blocked
        taken = outcome.name_conflicts[0] if outcome.name_conflicts else ""
        remedy = "exists and belongs to someone else: remove it or rename the deployment"
        self.conflict = f"{taken} {remedy}" if taken else ""

    def _bridging(self, aside: Collection[str]) -> int:
        """Groups of a placement that is taken back, which get the requests until the ones in force do again."""
        if self.plan.move is None or self.plan.move.convoy is None or not self.plan.move.convoy.taken_back:
            return 0
        return len({group.group for group, judgement in self.judged if group.name in aside and judgement.serving})

    @property
    def bridged(self) -> bool:
        """Those are as many as their own placement needs."""
        return self.bridging > 0 and self.plan.move is not None and self.bridging >= self.plan.move.course.needed

    def _replaced(self, group: Group) -> bool:
        """A newer incarnation of its group serves: the loss is history."""
        return any(
            other.group == group.group and other.incarnation > group.incarnation and judgement.serving
            for other, judgement in self.judged
        )

    @property
    def accepted(self) -> bool:
        return self.plan.refusal is None and not self.conflict

    @property
    def held_up(self) -> tuple[str, str] | None:
        """(reason, message) of a container that cannot start, or of a write that was refused."""
        if self.outcome.refusals:
            return "ApiRefused", self.outcome.refusals[0]
        for group, judgement in self.starting:
            if any(member.waiting_reason == judgement.reason for member in group.members):
                return "ContainerWaiting", f"g{group.group}: {judgement.message}"
        return None


def _asked_for(snapshot: Snapshot) -> int:
    """Groups a spec asks for that could not be resolved."""
    deployment = snapshot.deployment
    fixed = deployment.spec.fixed_allocations
    return wanted_groups(deployment, fixed[0]) if fixed else deployment.spec.scaling.min


def _conditions(facts: _Facts) -> list[Condition]:
    plan, deployment = facts.plan, facts.snapshot.deployment
    spec = deployment.spec
    settled = facts.ready == facts.count and not (facts.starting or facts.draining or facts.leaving)
    settled = settled and not plan.rollout.updating
    settled = settled and plan.move_step is None
    conditions = [
        _accepted(facts),
        _placed(facts),
        _available(facts),
        Condition(
            c.READY,
            facts.accepted and facts.ready == facts.count,
            "AllGroupsServe" if facts.accepted and facts.ready == facts.count else _progress_reason(facts),
            f"{facts.ready} of {facts.count} groups serve",
        ),
        Condition(c.PROGRESSING, _progressing(facts, settled), _progress_reason(facts), _summary_message(facts)),
        _degraded(facts),
        _stalled(facts),
        Condition(c.RECONCILING, _progressing(facts, settled), _progress_reason(facts), _summary_message(facts)),
    ]
    stored = facts.snapshot.raw.get("status") or {}
    told = any(each.get("type") == c.EVACUATIONS_FROZEN for each in stored.get("conditions") or ())
    if facts.snapshot.frozen or told:
        conditions.append(frozen_condition(facts.snapshot.frozen))
    conditions += resilience.conditions(facts.snapshot, plan)
    if plan.decision is not None and plan.wanted is not None:
        conditions += tell.conditions(plan.decision.status, _moves(facts).get("hold"))
        conditions += _scaling(facts)
    if facts.report is not None:
        conditions += measurement.conditions(facts.report, measurement.objectives_of(spec.objectives))
    if spec.scaling.mode == "Auto" and spec.replicas != 1:
        message = f"spec.replicas {spec.replicas} is ignored: set scaling.mode Manual to decide yourself"
        conditions.append(Condition(c.REPLICAS_IGNORED, True, "ScalingIsAuto", message))
    return conditions


def _moves(facts: _Facts) -> dict[str, Any]:
    plan = facts.plan
    steering = plan.decision.steering if plan.decision is not None else None
    decided = steering.verdict if steering is not None else None
    return moves_status(recall(facts.snapshot), plan.move, plan.move_step, decided, facts.snapshot.now)


def _scaling(facts: _Facts) -> Iterator[Condition]:
    """ScalingLimited, once there was something that limits it; without a look at measurements as it was."""
    steering = facts.plan.decision.steering if facts.plan.decision is not None else None
    if steering is not None and steering.out_of_reach:
        yield Condition(c.SCALING_LIMITED, True, "ObjectiveOutOfReach", steering.out_of_reach)
        return
    stored = facts.snapshot.raw.get("status") or {}
    before = next((each for each in stored.get("conditions") or () if each.get("type") == c.SCALING_LIMITED), None)
    if before is not None and steering is not None:
        yield Condition(c.SCALING_LIMITED, False, "ScalesWithTraffic", c.REASONS["ScalesWithTraffic"])
    elif before is not None:
        yield Condition(c.SCALING_LIMITED, before["status"] == "True", before["reason"], before.get("message", ""))


def _accepted(facts: _Facts) -> Condition:
    refusal = facts.plan.refusal
    if refusal is not None:
        return Condition(c.ACCEPTED, False, _listed(refusal.reason), str(refusal))
    if facts.conflict:
        return Condition(c.ACCEPTED, False, "NameTaken", facts.conflict)
    return Condition(c.ACCEPTED, True, "Valid", "the spec can be carried out")


def _placed(facts: _Facts) -> Condition:
    if not facts.accepted:
        return Condition(c.PLACED, False, "NotAccepted", "see condition Accepted")
    if facts.missing and facts.shortage is not None:
        return Condition(c.PLACED, False, _listed(facts.shortage.reason), facts.shortage.message)
    if facts.plan.decision is None:
        return Condition(c.PLACED, True, "Fixed", "spec.placement.fixed decides")
    return Condition(c.PLACED, True, "Planned", str(facts.plan.decision.status.get("placement", {}).get("reason", "")))


def _available(facts: _Facts) -> Condition:
    enough = facts.ready >= facts.plan.needed or facts.bridged
    message = f"{facts.ready} groups serve, {facts.plan.needed} are needed"
    if facts.bridged:
        message = f"{facts.bridging} groups of the placement that is taken back serve until the others do again"
    return Condition(c.AVAILABLE, enough, "EnoughGroups" if enough else "TooFewGroups", message)


def _degraded(facts: _Facts) -> Condition:
    if facts.failed:
        group, judgement = facts.failed[-1]
        return Condition(c.DEGRADED, True, "GroupFailed", f"g{group.group}: {judgement.reason}: {judgement.message}")
    if facts.held_up:
        return Condition(c.DEGRADED, True, *facts.held_up)
    return Condition(c.DEGRADED, False, "Healthy", "no group is lost or held up")


def _stalled(facts: _Facts) -> Condition:
    if not facts.accepted:
        return Condition(c.STALLED, True, "NotAccepted", "see condition Accepted")
    if facts.plan.rollout.stalled:
        return Condition(c.STALLED, True, "FailureBudgetSpent", facts.plan.rollout.stalled)
    blocked = facts.plan.rollout.blocked
    if blocked is not None and blocked.reason in ("NoSurgePossible", "LimitReached", "SLOInfeasible"):
        return Condition(c.STALLED, True, blocked.reason, blocked.message)
    return Condition(c.STALLED, False, "Healthy", "nothing stands in the way")


def _progressing(facts: _Facts, settled: bool) -> bool:
    return (
        facts.accepted
        and not settled
        and not facts.plan.rollout.stalled
        and facts.snapshot.deployment.spec.pause == "None"
    )


def _progress_reason(facts: _Facts) -> str:
    if not facts.accepted:
        return "NotAccepted"
    if facts.snapshot.deployment.spec.pause != "None":
        return "Paused"
    if facts.plan.rollout.stalled:
        return "FailureBudgetSpent"
    if facts.missing and facts.shortage is not None:
        return _listed(facts.shortage.reason)
    if facts.plan.rollout.backing_off:
        return "BackingOff"
    if facts.missing:
        return "GroupsMissing"
    if facts.plan.move_step is not None:
        return "Moving"
    if facts.plan.rollout.updating:
        return "Updating"
    if facts.leaving:
        return "DisruptionBlocked" if facts.plan.rollout.held else "LeavingNodes"
    if facts.failed and facts.starting:
        return "Replacing"
    if facts.starting:
        return "GroupsStarting"
    return "Draining" if facts.draining else "Settled"


def _listed(reason: str) -> str:
    """A reason that is in the documented list; anything else is an invalid field."""
    return reason if reason in c.REASONS else "InvalidSpec"


def _summary(facts: _Facts) -> dict[str, str]:
    wanted = facts.plan.wanted
    layout = UNKNOWN
    if wanted is not None and facts.counted:
        allocation = wanted.allocation
        layout = f"{allocation.pool} {wanted.template.variant.precision} tp{allocation.tensor_parallel}"
        layout += f" pp{allocation.pipeline_parallel}" if allocation.pipeline_parallel > 1 else ""
    return {
        "ready": f"{facts.ready}/{facts.count}",
        "placement": layout,
        "ttftP95": UNKNOWN,
        "tpotP95": UNKNOWN,
        **_felt(facts),
        "message": _summary_message(facts),
    }


def _felt(facts: _Facts) -> dict[str, str]:
    """Latencies as users feel them, where they are known."""
    if facts.report is None:
        return {}
    if facts.old_figures:
        stored = (facts.snapshot.raw.get("status") or {}).get("summary") or {}
        return {name: str(stored[name]) for name in ("ttftP95", "tpotP95") if name in stored}
    return measurement.summary(facts.report)


def _summary_message(facts: _Facts) -> str:
    """How it stands, in one line; the worst news first."""
    plan = facts.plan
    if plan.refusal is not None:
        return f"Not accepted: {plan.refusal}"
    if facts.conflict:
        return f"Not accepted: {facts.conflict}"
    pause = facts.snapshot.deployment.spec.pause
    if pause == "All":
        return "Paused: hands off"
    if plan.rollout.stalled:
        return f"Stalled: {plan.rollout.stalled}"
    if facts.failed:
        group, judgement = facts.failed[-1]
        again = f"; {plan.rollout.backing_off}" if plan.rollout.backing_off else ""
        return f"Group g{group.group} failed: {judgement.reason}{again}"
    if facts.missing and facts.shortage is not None:
        what = "Refused" if facts.shortage.reason == "ApiRefused" else "Waiting for GPUs"
        return f"{what}: {facts.shortage.message}"
    if facts.held_up:
        return facts.held_up[1]
    if plan.move_step is not None and plan.move is not None:
        # What it lacks is another only when the pool is; what is measured of it would be another at every look.
        lacks = f": {plan.move_step.message}" if plan.move_step.phase == "Reserving" and plan.move_step.message else ""
        return f"Moving to {tell.describe(shown(plan.move.course.to))}: {plan.move_step.phase}{lacks}"
    if facts.leaving:
        return f"Cannot leave: {plan.rollout.held}" if plan.rollout.held else f"Moving {facts.leaving}"
    if plan.rollout.blocked is not None and plan.rollout.updating:
        return f"Update waits: {plan.rollout.blocked.message}"
    if plan.rollout.updating:
        return "Updating"
    if facts.starting:
        group, judgement = facts.starting[0]
        return f"Starting g{group.group}: {judgement.message}"
    if facts.missing:
        return "Starting"
    if pause == "Changes":
        return "Ready, changes paused"
    return "Draining" if facts.draining else "Ready"


def _placement(
    facts: _Facts,
    deployment: LLMDeployment,
    wanted: Wanted,
    stored: Mapping[str, Any],
    predicted: Mapping[str, Any] | None,
) -> dict[str, Any]:
    plan, now = facts.plan, facts.snapshot.now
    variant = wanted.template.variant
    count = wanted_groups(deployment, wanted.allocation)
    allocation = {
        **wanted.template.allocation.model_dump(by_alias=True, exclude_none=True, mode="json"),
        "groups": count,
        "precision": variant.precision,
        "kvPrecision": variant.effective_kv_precision,
    }
    before = stored.get("placement") or {}
    placement: dict[str, Any] = {"reason": "fixed by spec.placement.fixed"}
    if plan.decision is not None:
        placement = dict(plan.decision.status.get("placement") or {})
    if predicted is not None:
        placement["predicted"] = predicted
    price = wanted.pool.spec.price_per_gpu_hour
    if price is not None and placement.get("allocations") != [allocation]:
        placement["costPerHour"] = f"{float(price) * count * wanted.allocation.gpus:.2f}"
    placement["allocations"] = [allocation, *_other_side(facts.plan)]
    same = before.get("allocations") == placement["allocations"] and before.get("decidedAt")
    placement["decidedAt"] = before["decidedAt"] if same else timestamp(now)
    return placement | _measured(facts, placement, before if same else {})


def _measured(facts: _Facts, placement: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of the placement, and the price of what was really served; takes older figures out."""
    for name in _MEASURED:
        placement.pop(name, None)
    if facts.report is None:
        return {}
    if facts.old_figures:
        kept = (*_MEASURED, "predicted", "costPerMillionOutputTokens") if "measured" in before else ()
        return {name: before[name] for name in kept if name in before}
    planned = _planned_price(facts)
    if planned is not None:
        placement["costPerMillionOutputTokens"] = planned
    elif "measured" in before:
        placement.pop("costPerMillionOutputTokens", None)
    return measurement.placement(facts.report, placement.get("predicted") or {}, placement.get("costPerHour"))


def _planned_price(facts: _Facts) -> str | None:
    """Per million output tokens at the planned traffic, where nothing was served yet."""
    decision = facts.plan.decision
    candidates = decision.status.get("candidates") or () if decision is not None else ()
    chosen: Mapping[str, Any] = next((each for each in candidates if each.get("chosen")), {})
    return chosen.get("costPerMillionOutputTokens")


def _other_side(plan: Plan) -> list[dict[str, Any]]:
    """The placement that a move comes from or goes to, whichever is not in force."""
    if plan.move is None or plan.move.convoy is None:
        return []
    course = plan.move.course
    return [shown(course.start if plan.move.flipped else course.to)]


def _groups(facts: _Facts) -> list[dict[str, Any]]:
    """One line per incarnation, failed first."""
    order = {State.FAILED: 0, State.DRAINING: 2}
    judged = sorted(facts.judged, key=lambda pair: (order.get(pair[1].state, 1), pair[0].group, -pair[0].incarnation))
    lines = []
    for group, judgement in judged[:MAX_GROUPS_LISTED]:
        line: dict[str, Any] = {
            "name": f"g{group.group}",
            "pool": group.pool,
            "state": judgement.state.value,
            "incarnation": group.incarnation,
            "since": _since(group, judgement),
        }
        nodes = [member.node for member in group.members if member.node] or list(group.planned_nodes)
        if nodes:
            line["nodes"] = nodes
        if not judgement.serving:
            line["reason"] = f"{judgement.reason}: {judgement.message}"[:1024]
        lines.append(line)
    return lines


def _since(group: Group, judgement: Judgement) -> str:
    """When it came into its state, from what is stored anyway."""
    if judgement.state is State.FAILED and group.failed_at is not None:
        return timestamp(group.failed_at)
    if judgement.state is State.DRAINING and group.retired_at is not None:
        return timestamp(group.retired_at)
    if judgement.serving:
        for condition in group.recorded.get("conditions") or ():
            if condition.get("type") == c.READY and condition.get("status") == "True":
                return str(condition.get("lastTransitionTime"))
    return timestamp(group.created_at)
