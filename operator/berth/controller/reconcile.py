"""The story of one pass: observe, plan, execute, write the status once. Level-triggered; safe to stop anywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from berth import labels, logs
from berth.api.common import readable
from berth.api.llmdeployment import LLMDeployment
from berth.api.status import LLMDeploymentStatus
from berth.controller.arbiter import Arbiter, Claim
from berth.controller.copies import Copies, key_of
from berth.controller.execute import Executor
from berth.controller.measuring import Measuring
from berth.controller.nodewatch import NodeWatch
from berth.controller.observe import Observer
from berth.controller.planner import Planner
from berth.controller.pools import PoolReconciler
from berth.controller.shard import Shard
from berth.controller.statuses import StatusWriter
from berth.controller.world import Key, World
from berth.core import actions as do
from berth.core import failover
from berth.core.announce import Announcement, announcements
from berth.core.conditions import ACCEPTED, PLACED, READY, STALLED, Condition, merge
from berth.core.failures import IN_PLACE, doubted_node
from berth.core.groups import State
from berth.core.moves.decision import Move
from berth.core.observed import Group, Shortage, Snapshot
from berth.core.placement.current import Current
from berth.core.placement.decide import Decision
from berth.core.plan import Plan, make_plan
from berth.core.progress import PROGRESS_SECONDS, only_a_step, only_progress
from berth.core.render import DeploymentRef, demand, render_replica_group
from berth.core.requests import Reply, Wish, pending, reply_before_move, reply_to_move
from berth.core.spread import SpreadGoal
from berth.core.status import Outcome, build_status
from berth.core.timestamps import unix_seconds
from berth.core.wanted import Defaults, Wanted
from berth.errors import BerthError, InvalidSpec, Transient
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.events import EventRecorder
from berth.kube.kinds import Object
from berth.metrics import Metrics
from berth.serving.monitor import Monitor, question
from berth.standing import Standing

_log = logging.getLogger(__name__)

RETRY_CAPACITY_SECONDS = 15.0
"""Pods of others come and go unseen: a deployment that waits for GPUs asks again this often."""
RETRY_CONFLICT_SECONDS = 30.0
"""How often a name that is taken, or a claim that is missing, is looked for again."""
RETRY_REFUSED_SECONDS = 10.0
MAX_REFUSED_SECONDS = 600.0
"""A group whose pods the API server refuses (quota, admission) is tried again after the first, doubling to the last."""


@dataclass
class _Memory:
    """What is remembered of a deployment between passes; losing it costs a pass, never a decision."""

    shortages: dict[int, Shortage] = field(default_factory=dict)
    """What came of the last attempts, by slot."""
    refusals: dict[int, tuple[int, float]] = field(default_factory=dict)
    """How often in a row the API server refused a group of this slot, and when last (Unix seconds)."""
    status_at: float = float("-inf")
    """When the status was written last (Unix seconds)."""

    def learn(self, outcome: Outcome, now: float) -> None:
        """Remember the shortages; a slot that was refused waits longer each time."""
        held = {slot: known for slot, known in self.shortages.items() if known.until is not None and known.until > now}
        for slot, shortage in outcome.shortages.items():
            if shortage.reason == "ApiRefused":
                count, at = self.refusals.get(slot, (0, now))
                count = 1 if now - at > 2 * MAX_REFUSED_SECONDS else count + 1
                self.refusals[slot] = count, now
                wait = min(RETRY_REFUSED_SECONDS * 2.0 ** (count - 1), MAX_REFUSED_SECONDS)
                shortage = replace(shortage, until=now + wait)
            held[slot] = shortage
        self.shortages = held


class Reconciler:
    """Passes over deployments and pools. `clock` gives Unix seconds."""

    def __init__(
        self,
        client: KubeClient,
        world: World,
        arbiter: Arbiter,
        executor: Executor,
        monitor: Monitor,
        watch: NodeWatch,
        measuring: Measuring,
        recorder: EventRecorder,
        defaults: Defaults,
        clock: Callable[[], float],
        resync_seconds: float,
        metrics: Metrics,
        copies: Copies,
        shard: Shard,
        standing: Standing | None = None,
        patience: Callable[[], float] = lambda: PROGRESS_SECONDS,
    ) -> None:
        self._client = client
        self._copies = copies
        self._shard = shard
        self._patience = patience
        """Seconds for which progress may go untold now."""
        self._statuses = StatusWriter(client)
        self._metrics = metrics
        self._world = world
        self._arbiter = arbiter
        self._executor = executor
        self._monitor = monitor
        self._measuring = measuring
        self._recorder = recorder
        self._defaults = defaults
        self._resync = resync_seconds
        self._standing = standing or Standing()
        self._observer = Observer(client, world, watch, copies, arbiter.granted, clock)
        self._pools = PoolReconciler(client, world, arbiter, watch, shard, clock)
        self._planner = Planner(arbiter, self._pools.why_not_usable)
        self._clock = clock
        self._memories: dict[Key, _Memory] = {}
        self._unplaced: set[Key] = set()

    async def reconcile(self, key: Key) -> float | None:
        """One pass over `key`; returns when the next is due, in seconds."""
        if key.kind == "GPUPool":
            with logs.about(pool=key.name):
                return await self._pools.reconcile(key)
        with logs.about(namespace=key.namespace, deployment=key.name):
            return await self._reconcile_deployment(key)

    async def _reconcile_deployment(self, key: Key) -> float | None:
        raw = await self._observer.read(key)
        if raw is None or not self._shard.takes(raw):
            self._forget(key)
            return None
        memory = self._memories.setdefault(key, _Memory())
        try:
            snapshot = await self._observer.snapshot(raw, self._monitor.answers(key), memory.shortages)
            snapshot = replace(snapshot, measured=self._measuring.measured(key))
        except InvalidSpec as error:
            await self._refuse(raw, error)
            return None
        try:
            return await self._pass(key, snapshot, memory)
        except BerthError:
            self._copies.drop(key)
            raise
        except Exception as error:
            await self._confess(raw, error)
            raise

    async def _pass(self, key: Key, snapshot: Snapshot, memory: _Memory) -> float | None:
        decision = await self._planner.decide(snapshot)
        wish = await self._wish(snapshot, decision)
        now = await self._current(key, snapshot, decision)
        groups = now.groups_for_traffic if now is not None else _last_known(snapshot)
        if decision is not None and snapshot.deployment.spec.scaling.mode == "Auto":
            groups = None  # the decision follows the measured traffic itself, and remembers it
        plan = make_plan(snapshot, self._defaults, partial(needed_groups, measured=groups), decision, wish)
        if plan.move is None:
            self._planner.stays(key.namespace, key.name)
        orders = self._orders(plan, memory)
        outcome = await self._executor.run(key.namespace, orders, lambda order: self._claim(key, snapshot, plan, order))
        if wish.request is not None and wish.move is not None:
            shortage = next((each.message for each in outcome.shortages.values()), "")
            plan = replace(plan, reply=reply_to_move(snapshot, shortage))
        memory.learn(outcome, snapshot.now)
        self._measure(plan)
        self._arbiter.forget(key, frozenset(outcome.shortages))
        (self._unplaced.add if plan.wanted is None else self._unplaced.discard)(key)
        self._ask(key, snapshot, plan)
        untold = await self._write_status(key, snapshot, plan, outcome, now, memory)
        if outcome.refusals:
            raise Transient(f"{key}: {outcome.refusals[0]}")
        if len(orders) < len(plan.actions):
            untold = min(untold, self._patience())
        return min(untold, self._next(plan, outcome, snapshot.shortages))

    async def _wish(self, snapshot: Snapshot, decision: Decision | None) -> Wish:
        """What a person asks for now, else what measurements do, as far as that is known before the plan."""
        try:
            request = pending(snapshot)
            if request is None:
                verdict = decision.steering.verdict if decision is not None and decision.steering else None
                return Wish(move=verdict if isinstance(verdict, Move) else None)
            if request.verb != "move":
                return Wish(request)
            if (reply := reply_before_move(snapshot, request)) is not None:
                return Wish(reply=reply)
            return Wish(request, await self._planner.move_asked_for(snapshot, request))
        except InvalidSpec as error:
            return Wish(reply=Reply("Refused", str(error)))

    def _orders(self, plan: Plan, memory: _Memory) -> tuple[do.Action, ...]:
        """The plan's, without records of steps that are left untold like the deployment's own."""
        if not 0 <= self._clock() - memory.status_at < self._patience():
            return plan.actions
        return tuple(
            order
            for order in plan.actions
            if not (isinstance(order, do.Record) and only_a_step(order.group.recorded, order.status))
        )

    def _measure(self, plan: Plan) -> None:
        """What this pass wrote about failures, for the metrics."""
        for order in plan.actions:
            match order:
                case do.Mark(_, _, annotations) if labels.FAILURE_REASON in annotations:
                    self._metrics.group_failed(annotations[labels.FAILURE_REASON] or "")
                case do.Mark(_, _, annotations) if labels.ACCEPTED_RESTART in annotations:
                    self._metrics.group_failed(IN_PLACE)
                case do.Record(group, status):
                    reason = str((status.get("evidence") or {}).get("cause", ""))
                    before, after = group.recorded.get("failover") or {}, status.get("failover") or {}
                    for phase, seconds in failover.news(before, after):
                        self._metrics.failover(phase, reason, seconds)
                    if failover.is_false_alarm(group, plan.judgements[group.name]):
                        self._metrics.false_alarm()

    async def _current(self, key: Key, snapshot: Snapshot, decision: Decision | None) -> Current | None:
        """What the placement in force is expected to do with the traffic of now; None where nobody can tell."""
        fixed = snapshot.deployment.spec.fixed_allocations
        allocation = decision.allocation if decision is not None else fixed[0] if fixed else None
        if allocation is None or snapshot.deployment.metadata.deletion_timestamp:
            return None
        return await self._measuring.current(key, snapshot, allocation, self._planner)

    def _next(self, plan: Plan, outcome: Outcome, known: Mapping[int, Shortage]) -> float:
        delays = [self._resync]
        if plan.rollout.displaced and not outcome.shortages.keys() <= known.keys():
            delays.append(0.0)  # that there is no room decides what becomes of them, and notices may be short
        if plan.requeue_after is not None:
            delays.append(plan.requeue_after)
        if outcome.shortages:
            delays.append(RETRY_CAPACITY_SECONDS)
        if outcome.name_conflicts or plan.wanted is None:
            delays.append(RETRY_CONFLICT_SECONDS)
        return min(delays)

    def _claim(self, key: Key, snapshot: Snapshot, plan: Plan, order: do.Reserve) -> Claim:
        move = plan.move if order.incoming else None
        wanted = move.incoming if move is not None else plan.wanted
        assert wanted is not None, "groups are only reserved for a resolved placement"
        deployment = snapshot.deployment
        reference = DeploymentRef.of(deployment)
        spread = deployment.spec.replica_groups.spread
        scheduler = deployment.spec.pod.scheduler_name
        lost = [group for group in snapshot.groups if plan.judgements[group.name].state is State.FAILED]
        return Claim(
            key=key,
            owner_uid=deployment.metadata.uid,
            group=order.group,
            pool=wanted.pool,
            demand=demand(wanted.template),
            spread=SpreadGoal(
                spread.topology_key, wanted.count, plan.needed, required=spread.when_unsatisfiable == "Require"
            ),
            inherits_from=frozenset(group.uid for group in lost),
            doubted=_doubted(lost, plan, snapshot.now),
            why_not=self._pools.why_not_usable(wanted.pool),
            own_check=wanted.pool.spec.provisioning == "Static" and scheduler in (None, "default-scheduler"),
            make=lambda nodes: render_replica_group(
                wanted.template,
                reference,
                order.group,
                order.incarnation,
                planned_nodes=nodes,
                move=(move.course.id, move.course.dump()) if move is not None else None,
            ),
            urgent=order.reason in ("Replace", "Move"),
            waited=_waited(snapshot),
        )

    def _ask(self, key: Key, snapshot: Snapshot, plan: Plan) -> None:
        questions = (question(member, what) for member, what in plan.questions)
        alive = frozenset(group.leader.uid for group in snapshot.groups if group.leader is not None)
        told = {order.member.uid: order.member.restarts for order in plan.actions if isinstance(order, do.Drain)}
        self._monitor.ask(key, frozenset(each for each in questions if each is not None), alive, told)
        self._measuring.follow(key, snapshot, plan)

    async def _write_status(
        self, key: Key, snapshot: Snapshot, plan: Plan, outcome: Outcome, now: Current | None, memory: _Memory
    ) -> float:
        """Returns the seconds after which it has to be looked at again, because something was left untold."""
        report = self._measuring.report(key, snapshot, plan)
        status = build_status(snapshot, plan, outcome, report, now.predicted if now else None)
        if self._measuring.live.service:
            status["live"] = self._measuring.live.service
        metadata = snapshot.deployment.metadata
        self._standing.tell(metadata.namespace, metadata.name, snapshot.deployment, status)
        stored = snapshot.raw.get("status") or {}
        takes = self._statuses.takes("LLMDeployment", status)
        if takes == stored:
            return float("inf")
        judged = [(group, plan.judgements[group.name]) for group in snapshot.groups]
        told = announcements(stored, status, judged)
        since = self._clock() - memory.status_at
        patience = self._patience()
        if not told and 0 <= since < patience and only_progress(stored, takes):
            return patience - since
        await self._apply_status(dict(snapshot.raw), status)
        memory.status_at = self._clock()
        if plan.move_step is not None and plan.move_step.ended is not None:
            self._metrics.move_ended(plan.move_step.ended.course.cause, plan.move_step.ended.result)
        for news in told:
            self._announce(snapshot.raw, news)
        return float("inf")

    def _announce(self, raw: Mapping[str, Any], news: Announcement) -> None:
        """In Events of the deployment and of the group, and in the log: people should not read two stories."""
        group = news.group
        keys: dict[str, str | int] = {"group": f"g{group.group}", "incarnation": group.incarnation} if group else {}
        with logs.about(**keys):
            _log.log(logging.WARNING if news.warning else logging.INFO, "%s: %s", news.reason, news.note)
        told = [(raw, None)] if group is None else [(raw, group.manifest), (group.manifest, raw)]
        for regarding, related in told:
            self._recorder.record(
                dict(regarding),
                news.reason,
                news.note,
                action=news.action,
                type_="Warning" if news.warning else "Normal",
                related=dict(related) if related else None,
            )

    async def _refuse(self, raw: Object, error: InvalidSpec) -> None:
        """Say what is wrong with an object that this release cannot even read; its groups are left as they are."""
        conditions = [
            Condition(ACCEPTED, False, "InvalidSpec", str(error)),
            Condition(READY, False, "NotAccepted", "see condition Accepted"),
        ]
        await self._say(raw, conditions, f"Not accepted: {error}")

    async def _confess(self, raw: Object, error: Exception) -> None:
        """Say that a pass failed for a reason that is Berth's own; everything else of the status stays."""
        words = f"internal error, the operator's log has more: {type(error).__name__}: {error}"
        if await self._say(raw, [Condition(STALLED, True, "InternalError", words)], words):
            self._recorder.record(dict(raw), "InternalError", words, action="Reconcile", type_="Warning")

    async def _say(self, raw: Object, conditions: list[Condition], message: str) -> bool:
        """Change these conditions and the one line, nothing else; whether that was news."""
        generation = int(raw["metadata"].get("generation", 1))
        stored = readable(LLMDeploymentStatus, raw.get("status"))
        before = stored.get("conditions") or ()
        said = {condition.type for condition in conditions}
        merged = merge(conditions, before, generation, self._clock())
        merged += [old for old in before if old["type"] not in said]
        status = {
            **stored,
            "observedGeneration": generation,
            "conditions": sorted(merged, key=lambda condition: str(condition["type"])),
            "summary": {**(stored.get("summary") or {}), "message": message[:1024]},
        }
        self._standing.tell(raw["metadata"]["namespace"], raw["metadata"]["name"], None, status)
        if status == stored:
            return False
        await self._apply_status(raw, status)
        return True

    async def _apply_status(self, raw: Object, status: dict[str, Any]) -> None:
        metadata = raw["metadata"]
        body = {
            "apiVersion": labels.API_VERSION,
            "kind": "LLMDeployment",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
            "status": status,
        }
        try:
            self._copies.wrote(raw, await self._statuses.write(body))
        except NotFound:
            self._copies.drop(key_of(raw))
            _log.debug("%s is gone", metadata["name"])

    def waiting(self) -> frozenset[Key]:
        """Deployments that should look again when capacity or a pool changes."""
        return self._arbiter.waiting() | self._unplaced

    def _forget(self, key: Key) -> None:
        self._memories.pop(key, None)
        self._planner.forget(key.namespace, key.name)
        self._standing.forget(key.namespace, key.name)
        self._unplaced.discard(key)
        self._monitor.ask(key, frozenset(), frozenset())
        self._measuring.forget(key)
        self._arbiter.forget(key)


def _doubted(lost: Sequence[Group], plan: Plan, now: float) -> dict[str, float]:
    """Nodes that may have gone with a member of a lost group, each with the moment since when it must be heard from."""
    doubted: dict[str, float] = {}
    for group in lost:
        evidence = plan.judgements[group.name].evidence or group.recorded_evidence
        if node := doubted_node(evidence, group.members):
            doubted[node] = group.failed_at or now
    return doubted


def _waited(snapshot: Snapshot) -> float:
    """Seconds for which the deployment has waited for capacity by now, as its stored status says."""
    stored = (snapshot.raw.get("status") or {}).get("conditions") or ()
    placed: Mapping[str, Any] = next((each for each in stored if each.get("type") == PLACED), {})
    since = unix_seconds(placed.get("lastTransitionTime"))
    waits = placed.get("status") == "False" and placed.get("reason") == "WaitingForCapacity"
    return max(0.0, snapshot.now - since) if waits and since is not None else 0.0


def needed_groups(deployment: LLMDeployment, wanted: Wanted, measured: int | None = None) -> int:
    """Groups that must serve: what the user demands, or what the traffic needs; never more than there are to be.

    `measured` is what the measured traffic needs where the decision does not know it, as where people count groups;
    before the first measurement it is the planned one's.
    """
    for_traffic = measured if measured is not None else wanted.groups_for_traffic
    return min(max(deployment.spec.replica_groups.min_available, for_traffic), wanted.count)


def _last_known(snapshot: Snapshot) -> int | None:
    """What an earlier process found to be needed, if it had measured."""
    stored = snapshot.raw.get("status") or {}
    needed = stored.get("needed")
    return needed if isinstance(needed, int) and (stored.get("placement") or {}).get("measured") else None
