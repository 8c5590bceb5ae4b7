"""The pure part of an operator on a cluster of dictionaries, pass by pass, with answers of leaders and a referee.

Objects are raw manifests, read by the operator's own parser: labels and annotations are all the memory there is.
What must never happen is checked at each order, from what the cluster knows and not from what was planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from berth import labels
from berth.api.common import read
from berth.api.llmdeployment import LLMDeployment
from berth.controller import parse
from berth.core import actions as do
from berth.core.conditions import GROUP_REASONS, REASONS
from berth.core.disruption import displaced
from berth.core.failures import UNREACHABLE
from berth.core.moves.underway import underway
from berth.core.nodes import NodeView
from berth.core.observed import Answer, Ask, Contact, NodeFacts, Shortage, Sickness, Snapshot
from berth.core.placement.decide import Decision
from berth.core.plan import Plan, make_plan
from berth.core.render import DeploymentRef, render_replica_group
from berth.core.requests import NOTHING, Wish
from berth.core.status import Outcome, build_status
from berth.core.timestamps import timestamp
from berth.core.wanted import Defaults, resolve
from tests.unit.core.cluster import GIVEN_UP, GPUS_PER_NODE, Cluster, Manifest, copy_of, is_ready, owner_of

DEFAULTS = Defaults({"/opt/berth/lib/berth/engine/launcher.py": "# launcher\n"}, {"simulated": "engine:1"})
POOL: Manifest = {
    "apiVersion": labels.API_VERSION,
    "kind": "GPUPool",
    "metadata": {"name": "h100", "uid": "pool"},
    "spec": {
        "gpu": "H100-SXM-80",
        "nodeSelector": {"pool": "h100"},
        "resourceName": "nvidia.com/gpu",
        "gpusPerNode": GPUS_PER_NODE,
    },
}


def deployment(*, tensor: int = 4, pipeline: int = 1, groups: int = 2, min_available: int = 1, **spec: Any) -> Manifest:
    allocation = {
        "pool": "h100",
        "variant": "bf16",
        "tensorParallel": tensor,
        "pipelineParallel": pipeline,
        "groups": groups,
    }
    source = {"huggingFace": {"repository": "example/llama"}}
    return {
        "apiVersion": labels.API_VERSION,
        "kind": "LLMDeployment",
        "metadata": {"name": "llama", "namespace": "ns", "uid": "deployment-uid", "generation": 1},
        "spec": {
            "model": {
                "name": "llama-3.1-8b-instruct",
                "variants": [{"name": "bf16", "precision": "bf16", "source": source}],
            },
            "placement": {"mode": "Fixed", "fixed": {"allocations": [allocation]}},
            "engine": {"backend": "simulated"},
            "replicaGroups": {"minAvailable": min_available, "recovery": {"maxFailures": 3}},
            **spec,
        },
    }


class Simulation(Cluster):
    """The cluster and an operator on it; `run_pass` is one pass over the deployment."""

    def __init__(self, stored: Manifest, nodes: int = 3) -> None:
        super().__init__(stored, nodes)
        self.shortages: dict[int, Shortage] = {}
        self.answers: dict[str, Answer] = {}
        self.history: list[str] = []
        self.decision: Decision | None = None
        """The planner's, for placement.mode Auto."""
        self.wish: Wish = NOTHING
        self.frozen = False
        """Evacuations are frozen."""
        self.newborn = False
        """The operator has just begun: it has seen no Lease change yet."""
        self.drained: list[str] = []
        self.pools: dict[str, Manifest] = {"h100": POOL}

    # --- the operator -------------------------------------------------------------------------------------------------
    def snapshot(self) -> Snapshot:
        owner = {"name": "llama", "uid": self.stored["metadata"]["uid"]}
        groups = []
        for stored in self.groups.values():
            members = [pod for pod in self.pods.values() if owner_of(pod) == stored["metadata"]["uid"]]
            groups.append(parse.group(copy_of(stored), owner, copy_of(members)))
        known = {group.uid for group in groups}
        strays: Counter[int] = Counter()
        for pod in self.pods.values():
            if owner_of(pod) not in known:
                slot, incarnation = parse.incarnation(pod)
                strays[slot] = max(strays[slot], incarnation)
        deployment, raw = read(LLMDeployment, copy_of(self.stored))
        return Snapshot(
            deployment=deployment,
            raw=raw,
            groups=tuple(sorted(groups, key=lambda group: (group.group, group.incarnation))),
            stray_incarnations=strays,
            answers=dict(self.answers),
            children=copy_of(self.children),
            pools=self.pools,
            shortages=dict(self.shortages),
            missing_claims=frozenset(),
            now=self.now,
            nodes={
                name: NodeView(name, unschedulable=name in self.cordoned, ready=self.quiet[name] < GIVEN_UP)
                for name in set(self.nodes) - self.gone
            },
            facts={name: self._facts(name) for name in self.nodes},
            frozen="frozen" if self.frozen else "",
        )

    def _facts(self, node: str) -> NodeFacts:
        """Late after one round of silence, silent after two, given up by the control plane after three."""
        quiet = 0 if self.newborn else min(self.quiet[node], 2)
        return NodeFacts(
            gone=node in self.gone,
            contact=Contact.UNKNOWN if self.newborn else (Contact.FRESH, Contact.LATE, Contact.SILENT)[quiet],
            silent_since=self.now - 10 if quiet else None,
            sick={uid: Sickness("GPU 0 is unhealthy", self.now - 3) for uid in self.sick},
            frozen=self.frozen,
        )

    def run_pass(self, cut: int | None = None) -> Plan:
        """One pass; with `cut` it ends after so many orders, and what the process remembered is lost with it."""
        snapshot = self.snapshot()
        plan = make_plan(snapshot, DEFAULTS, lambda deployment, wanted: self.needed, self.decision, self.wish)
        self._check_retirements(plan)
        self.shortages = {}
        for number, order in enumerate(plan.actions):
            if cut is not None and number >= cut:
                self.restart_operator()
                return plan
            self.history.append(f"{self.now:.0f} {_told(order)}")
            self._carry_out(order, snapshot)
            self._check_slots()
        status = build_status(snapshot, plan, Outcome(dict(self.shortages)))
        if not plan.actions and self.stored.get("status"):
            assert build_status(self.snapshot(), plan, Outcome(dict(self.shortages))) == status
        self.stored["status"] = copy_of(status)
        self._answer(plan)
        self._check_labels(plan)
        self._check_doubts(plan)
        self._check_reasons(status)
        self.now += 1
        return plan

    def restart_operator(self) -> None:
        """What the process remembered is lost with it."""
        self.answers, self.shortages, self.newborn = {}, {}, True

    def kubelets(self) -> None:
        super().kubelets()
        self.newborn = False

    @property
    def wanted(self) -> int:
        return int(self.stored["spec"]["placement"]["fixed"]["allocations"][0]["groups"])

    @property
    def needed(self) -> int:
        return min(int(self.stored["spec"]["replicaGroups"]["minAvailable"]), self.wanted)

    def _carry_out(self, order: do.Action, snapshot: Snapshot) -> None:
        match order:
            case do.Ensure(manifest):
                key = manifest["kind"], manifest["metadata"]["name"]
                stored = copy_of(dict(manifest))
                stored["metadata"]["uid"] = self._uid()
                self.children[key] = stored
            case do.Create(group, manifest):
                name = manifest["metadata"]["name"]
                assert name not in self.pods or owner_of(self.pods[name]) == group.uid, (
                    f"{name} is still somebody else's"
                )
                if name not in self.pods and group.name in self.groups:
                    self._create_pod(copy_of(dict(manifest)))
            case do.Reserve():
                self._reserve(order, snapshot)
            case do.Mark(group, new_labels, annotations):
                if labels.FAILURE_REASON in annotations:
                    self._check_failure(group.name, annotations[labels.FAILURE_REASON])
                metadata = self.groups[group.name]["metadata"]
                _merge(metadata["labels"], new_labels)
                _merge(metadata["annotations"], annotations)
            case do.Record(group, status):
                self.groups[group.name]["status"] = copy_of(dict(status))
            case do.SetServing(member, serving):
                self._set_serving(member.name, member.uid, member.restarts, serving)
            case do.Restore(member):
                if self._pod(member.name, member.uid):
                    self.pods[member.name]["metadata"]["labels"].update(member.lost_labels)
            case do.Ungate(member):
                if self._pod(member.name, member.uid):
                    self.pods[member.name]["spec"].pop("schedulingGates", None)
            case do.Drain(member):
                self.drained.append(member.uid)
                self.draining.add(member.uid)
            case do.Resume(member):
                self.draining.discard(member.uid)
            case do.DeleteMember(member, grace):
                self._check_deletion(member.name, member.uid)
                self.pods[member.name]["metadata"].setdefault("deletionTimestamp", timestamp(self.now))
                if grace == 0:
                    self._check_force(self.pods[member.name]["spec"].get("nodeName", ""))
                    del self.pods[member.name]
            case do.DeleteGroup(group):
                assert not any(owner_of(pod) == group.uid for pod in self.pods.values()), (
                    "a group with pods was deleted"
                )
                del self.groups[group.name]
            case do.DeleteConfigMap(name):
                used = {each["metadata"]["annotations"][labels.CONFIG_MAP] for each in self.groups.values()}
                assert name not in used, f"{name} is in use"
                del self.children["ConfigMap", name]

    def _reserve(self, order: do.Reserve, snapshot: Snapshot) -> None:
        move = underway(snapshot, DEFAULTS, self.wish.move) if order.incoming else None
        wanted = move.incoming if move is not None else resolve(snapshot, DEFAULTS, self.decision)
        assert wanted is not None
        members, gpus = wanted.template.members, wanted.template.gpus_per_member
        dying = {each["metadata"]["uid"] for each in self.groups.values() if parse.lifecycle(each) == labels.FAILED}
        self._check_first_of_its_slot(order, snapshot, wanted.template.template_hash)
        alive = self._nodes_of(wanted.allocation.pool) - self.dead - self.mute - self.gone - self.cordoned
        free = {name: self.nodes[name] - self._held(name, dying) for name in alive}
        fitting = sorted((name for name in free if free[name] >= gpus), key=lambda name: (free[name], name))
        if len(fitting) < members:
            self.shortages[order.group] = Shortage("WaitingForCapacity", f"needs {members} x {gpus}")
            return
        reference = DeploymentRef.of(snapshot.deployment)
        record = (move.course.id, move.course.dump()) if move is not None else None
        made = render_replica_group(
            wanted.template, reference, order.group, order.incarnation, fitting[:members], move=record
        )
        name = made["metadata"]["name"]
        assert name not in self.groups, f"{name} exists"
        made["metadata"] |= {"uid": self._uid(), "creationTimestamp": timestamp(self.now)}
        self.groups[name] = copy_of(made)

    def _nodes_of(self, pool: str) -> set[str]:
        return set(self.nodes)

    def _answer(self, plan: Plan) -> None:
        for member, what in plan.questions:
            pod = self._pod(member.name, member.uid)
            if pod is None or (what is Ask.FIRST and ({"*", member.uid} & self.silent or not is_ready(pod))):
                continue
            restarts = pod["status"]["containerStatuses"][0]["restartCount"]
            before = self.answers.get(member.uid)
            if self._unreachable(pod):
                missed = before or Answer(member.uid, restarts)
                self.answers[member.uid] = replace(missed, misses=missed.misses + 1)
                continue
            if what is Ask.PROGRESS:
                token_at = before.token_at if before else None
                hung = member.uid in self.hung
                frozen_for = (before.frozen_for if before else 0.0) + 10.0 if hung else 0.0
                self.answers[member.uid] = Answer(
                    member.uid,
                    restarts,
                    token_at,
                    at=self.now,
                    frozen_for=frozen_for,
                    draining=member.uid in self.draining,
                    canary_missed=hung,
                )
            elif what is Ask.DRAINED:
                token_at = before.token_at if before else None
                self.answers[member.uid] = Answer(member.uid, restarts, token_at, int(self.busy), at=self.now)
            else:
                self.tokens.add((member.uid, restarts))
                self.answers[member.uid] = Answer(member.uid, restarts, self.now, at=self.now)

    # --- what must never happen ---------------------------------------------------------------------------------------
    def _check_failure(self, name: str, reason: str) -> None:
        """Nothing is given up but for what really happened, or for what nobody could tell from it."""
        pods = [pod for pod in self.pods.values() if owner_of(pod) == self.groups[name]["metadata"]["uid"]]
        nodes = {pod["spec"].get("nodeName") for pod in pods}
        match reason:
            case "NodeSilent":
                silent = {node for node in nodes if self.quiet[node] >= 2}
                assert silent, f"{name} is given up on nodes that are heard from"
                assert not self.frozen, f"{name} is given up while evacuations are frozen"
                leader = self.leader_of(self.groups[name])
                served = leader is not None and _gave_a_token(leader)
                assert not served or self._missed(leader), f"{name} answers"
                others = [each for other, each in self.groups.items() if other != name and self.serves(each)]
                others = [each for each in others if not self._missed(self.leader_of(each))]
                given_up = any(self.quiet[node] >= GIVEN_UP for node in silent)
                assert others or given_up, f"{name} was the last that served"
            case "GPUUnhealthy":
                assert {pod["metadata"]["uid"] for pod in pods} & self.sick
            case "NodeDeleted":
                assert nodes & self.gone
            case "EngineFrozen":
                told = {uid for uid, answer in self.answers.items() if answer.frozen_for}  # it may have recovered since
                assert {pod["metadata"]["uid"] for pod in pods} & (self.hung | told)

    def _missed(self, leader: Manifest | None) -> bool:
        answer = self.answers.get(leader["metadata"]["uid"]) if leader else None
        return answer is not None and answer.misses >= 2

    def _check_force(self, node: str) -> None:
        recovery = self.stored["spec"]["replicaGroups"]["recovery"]
        assert recovery.get("forceDelete") == "NodeUnreachable", "removed by force without leave"
        assert self.quiet[node] >= GIVEN_UP, f"removed by force from {node}, which is heard from"

    def _check_retirements(self, plan: Plan) -> None:
        """A serving group only leaves while as many as are needed stay."""
        leaving = {
            order.group.name
            for order in plan.actions
            if isinstance(order, do.Mark) and order.labels.get(labels.LIFECYCLE) == labels.RETIRING
        }
        lost = {name for name, judgement in plan.judgements.items() if judgement.state.value == "Failed"}
        doubted = {name for name, judgement in plan.judgements.items() if judgement.reason == UNREACHABLE}
        serving = {name for name, group in self.groups.items() if self.serves(group)} - lost
        if leaving & serving:
            staying = serving - leaving - doubted
            assert len(staying) >= self.needed, f"{leaving & serving} leave, {staying} stay of {self.needed} needed"

    def _check_doubts(self, plan: Plan) -> None:
        """After a pass that cut groups off on suspicion, or gave them up for it, another gets requests and answers."""
        doubted = {name for name, judgement in plan.judgements.items() if judgement.reason == UNREACHABLE}
        silent = {name for name, judgement in plan.judgements.items() if judgement.reason == "NodeSilent"}
        cut = {order.member.uid for order in plan.actions if isinstance(order, do.SetServing) and not order.serving}
        for name in doubted | silent:
            leader = self.leader_of(self.groups[name])
            if leader is None or leader["metadata"]["uid"] not in cut:
                continue
            if name in silent and any(
                self.quiet[node] >= GIVEN_UP for node in self.groups[name]["spec"]["plannedNodes"]
            ):
                continue  # the control plane gave it up, too
            others = [each for other, each in self.groups.items() if other not in doubted and self.serves(each)]
            assert others, f"{name} was cut off and nobody else serves"

    def _check_deletion(self, name: str, uid: str) -> None:
        pod = self.pods[name]
        assert pod["metadata"]["uid"] == uid
        group = next(each for each in self.groups.values() if each["metadata"]["uid"] == owner_of(pod))
        lifecycle = parse.lifecycle(group)
        assert lifecycle in (labels.FAILED, labels.RETIRING), f"{name} of a {lifecycle} group was deleted"
        assert pod["metadata"]["labels"].get(labels.SERVING) != "true", f"{name} was deleted under traffic"
        if lifecycle == labels.FAILED:
            assert group["status"]["evidence"]["cause"], "deleted before the evidence was recorded"
            assert uid in group["status"]["memberUIDs"], "deleted before it was recorded"

    def _check_first_of_its_slot(self, order: do.Reserve, snapshot: Snapshot, template_hash: str) -> None:
        """Another life in a slot begins only where none of its template stands, or each has to leave its node."""
        restless = displaced(snapshot.groups, snapshot.nodes, DEFAULTS.notices)
        mates = [
            each["metadata"]["name"]
            for each in self.groups.values()
            if parse.lifecycle(each) in (labels.RESERVED, labels.COMMITTED)
            and (each["spec"]["group"], each["spec"]["templateHash"]) == (f"g{order.group}", template_hash)
        ]
        assert set(mates) <= set(restless), f"g{order.group} is there: {mates}"

    def _check_slots(self) -> None:
        alive = Counter(
            (each["spec"]["group"], each["spec"]["templateHash"])
            for each in self.groups.values()
            if parse.lifecycle(each) in (labels.RESERVED, labels.COMMITTED)
        )
        # Three for a moment: what a replacement stands on can be cordoned, too, before anything has left.
        assert all(count <= 3 for count in alive.values()), f"too many in one slot: {alive}"

    def _check_reasons(self, status: Manifest) -> None:
        """Every word that people read is one that the runbook explains, or the kubelet's."""
        told = {each["reason"] for each in status["conditions"]}
        assert told <= REASONS.keys(), told - REASONS.keys()
        groups = (each.get("status", {}).get("conditions", ()) for each in self.groups.values())
        of_groups = {each["reason"] for conditions in groups for each in conditions}
        assert of_groups <= {*GROUP_REASONS, "CrashLoopBackOff", "CreateContainerConfigError"}, of_groups

    def _check_labels(self, plan: Plan) -> None:
        """After a whole pass nobody unproven gets requests, whoever wrote the label."""
        if self.stored["spec"].get("pause") == "All":
            return
        for pod in self.pods.values():
            known = any(each["metadata"]["uid"] == owner_of(pod) for each in self.groups.values())
            if known and pod["metadata"]["labels"].get(labels.SERVING) == "true":
                restarts = pod["status"]["containerStatuses"][0]["restartCount"]
                assert pod["metadata"]["labels"][labels.MEMBER] == labels.LEADER
                assert (pod["metadata"]["uid"], restarts) in self.tokens, f"{pod['metadata']['name']} has no token"


def _merge(into: Manifest, changes: Mapping[str, str | None]) -> None:
    """As a merge patch does."""
    for key, value in changes.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = value


def _told(order: do.Action) -> str:
    """One line for the story of a run that failed."""
    match order:
        case do.Reserve(group, incarnation, reason):
            return f"Reserve g{group} {incarnation} {reason}"
        case do.Mark(marked, new_labels, _):
            return f"Mark {marked.name} {new_labels}"
        case do.Record(recorded, status):
            return f"Record {recorded.name} {status['state']} {status.get('evidence', '')}"
        case do.SetServing(member, serving):
            return f"SetServing {member.name} {serving}"
        case do.DeleteMember(member, _):
            return f"DeleteMember {member.name}"
        case _:
            return type(order).__name__


def _gave_a_token(leader: Manifest) -> bool:
    """In this life of its container: what an earlier one did proves nothing of it."""
    told = leader["metadata"].get("annotations", {}).get(labels.TOKEN_RESTARTS)
    return any(told == str(each["restartCount"]) for each in leader["status"].get("containerStatuses") or ())
