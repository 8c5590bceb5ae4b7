"""Conditions of an LLMDeployment: their types, the stable words for their reasons, and how they change over time.

Invariant: `lastTransitionTime` moves only when `status` flips; everything else may be rewritten at any pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from berth.core.timestamps import timestamp

ACCEPTED: Final = "Accepted"
PLACED: Final = "Placed"
AVAILABLE: Final = "Available"
READY: Final = "Ready"
PROGRESSING: Final = "Progressing"
DEGRADED: Final = "Degraded"
EVACUATIONS_FROZEN: Final = "EvacuationsFrozen"
OBJECTIVES_MET: Final = "ObjectivesMet"
METRICS_AVAILABLE: Final = "MetricsAvailable"
AVAILABILITY_TARGET_MET: Final = "AvailabilityTargetMet"
PLACEMENT_OUTDATED: Final = "PlacementOutdated"
REPLICAS_IGNORED: Final = "ReplicasIgnored"
SCALING_LIMITED: Final = "ScalingLimited"
LOSS_TOLERATED: Final = "LossTolerated"
DISRUPTED: Final = "Disrupted"
FOREIGN_PDB_OVERLAP: Final = "ForeignPDBOverlap"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"

REASONS: Final[Mapping[str, str]] = {
    "Valid": "The spec can be carried out.",
    "UnknownModel": "spec.model.name is not in the catalogue and spec.model.architecture is absent.",
    "UnknownPool": "A pool the spec names does not exist.",
    "UnreadablePool": "This release cannot read a pool the spec names; the pool's condition Accepted says why.",
    "PoolNotAllowed": "The pool's allowedNamespaces does not select this namespace.",
    "UnknownGPU": "The pool's GPU type is not one Berth knows.",
    "UnsupportedPrecision": "The pool's GPU or the backend cannot run this precision.",
    "InvalidParallelism": "Tensor or pipeline parallelism does not divide the model or does not fit a node.",
    "VariantMismatch": "The variant was built for another GPU type or another parallelism.",
    "LimitExceeded": "The placement needs more than objectives.limits or gpuBudget allows.",
    "ClaimNotFound": "A PersistentVolumeClaim that the spec names does not exist.",
    "NameTaken": "An object of a name Berth needs exists and belongs to someone else.",
    "InvalidSpec": "A field is out of its bounds.",
    "TrafficExceedsContext": "The longest request of spec.traffic is longer than the model's context.",
    "Fixed": "The placement is the one the spec fixes.",
    "Planned": "Berth chose the placement; status.candidates says among which.",
    "SLOInfeasible": "No placement meets the objectives within the limits; the message names the closest and the cure.",
    "PlacementCurrent": "The placement is what the spec asks for.",
    "BetterPlacement": "The spec asks for another placement, and placement.moves.mode keeps the present one.",
    "TargetReached": "The predicted availability reaches objectives.availability.",
    "TargetMissed": "The predicted availability is below objectives.availability; the message says what binds.",
    "ObjectivesReached": "The latency objectives are met, as measured; the message has the figures.",
    "ObjectivesMissed": "More requests miss a latency objective than it allows, and not by chance.",
    "TooFewRequests": "Too few requests were measured to tell.",
    "MetricsFresh": "Every leader that serves was measured lately.",
    "MetricsMissing": "A leader that serves was not measured lately: nothing is decided on metrics until it is.",
    "NothingServes": "No group serves, so nothing can be measured.",
    "AnyLossKeepsNeeded": "Losing any one node or failure domain leaves the needed groups.",
    "NodeLossBreaksNeeded": "Losing one node would leave too few groups; the message names it.",
    "DomainLossBreaksNeeded": "Losing one failure domain would leave too few groups; the message names it.",
    "NothingStands": "No group has nodes yet.",
    "NoDisruption": "No group stands on a node that is about to go.",
    "LeavingNodes": "Groups on cordoned nodes, or nodes about to go, are replaced elsewhere and then leave.",
    "DisruptionBlocked": "A group should leave its node and cannot; the message says what is missing.",
    "DisruptionIgnored": "disruption.onCordon is Ignore: groups stay until their node is gone.",
    "PDBSelectsGroups": "A PodDisruptionBudget of others selects pods of groups, so draining them ends in an error.",
    "NoForeignPDB": "No PodDisruptionBudget of others selects pods of the groups.",
    "NotAccepted": "The spec was not accepted, see Accepted.",
    "WaitingForCapacity": "No pool has the free GPUs that the next group needs; the message says how many are missing.",
    "LimitReached": "objectives.limits leaves no room for the next group.",
    "NamespaceLimitReached": "The operator's settings let no namespace hold more groups or GPUs than this one has.",
    "NoSurgePossible": "An update, or a move with surge Never, needs spare GPUs or one group less and has neither.",
    "EnoughGroups": "At least the needed groups serve.",
    "TooFewGroups": "Fewer groups serve than are needed.",
    "AllGroupsServe": "Every wanted group serves.",
    "GroupsStarting": "Groups are on their way to serving.",
    "GroupsMissing": "Wanted groups do not exist yet.",
    "Moving": "The deployment moves to another placement; status.moves.current says how far it is.",
    "Updating": "Groups of an older template are being replaced.",
    "Replacing": "A lost group is being replaced.",
    "Draining": "Groups that are no longer wanted finish their requests.",
    "Settled": "Nothing is left to do.",
    "GroupFailed": "A group was lost within recovery.window.",
    "ContainerWaiting": "A container cannot start; the message has the kubelet's words.",
    "ApiRefused": "The API server refused a write; the message has its words.",
    "Healthy": "No group is lost or held up.",
    "FailureBudgetSpent": "Groups failed too often within recovery.window; the rest serves on.",
    "InternalError": "A pass failed for a reason that is Berth's own; it is repeated, the operator's log has more.",
    "BackingOff": "The next attempt waits because groups failed repeatedly.",
    "Paused": "spec.pause holds changes back.",
    "ScalingIsAuto": "spec.replicas was set but scaling.mode is Auto, so Berth decides.",
    "ScalingIsManual": "spec.replicas decides.",
    "ObjectiveOutOfReach": "One request alone misses an objective, or nearly: groups are not added for its sake.",
    "ScalesWithTraffic": "More groups help where the traffic takes them.",
    "SilenceNotTrusted": "So many nodes are silent that the fault is more likely Berth's: nothing is given up for it.",
    "SilenceTrusted": "Nodes that fall silent are given up and their groups replaced.",
    "NoOverlap": "No node of the pool belongs to another pool.",
    "NodesInSeveralPools": "Nodes belong to two pools; neither is planned with until a nodeSelector is narrowed.",
    "DevicePlugin": "The device plugin offers the GPUs of all ready nodes.",
    "NoDevicePlugin": "Ready nodes offer no GPUs: dynamic resource allocation serves them, or the plugin is down.",
    "ProductsMatch": "Every node the selector finds has the pool's GPU type.",
    "OtherGPU": "The selector also finds nodes with other, shared or partitioned GPUs; they are left out.",
}
"""Every reason a condition may carry, with its meaning; the documentation is generated from it."""


GROUP_REASONS: Final[Mapping[str, str]] = {
    "CreatingMembers": "Its pods are being created.",
    "MembersCreated": "All its pods exist; from now on a missing one is a failure.",
    "Released": "It is no longer wanted and gives back what it holds.",
    "Ungating": "Its pods are handed to the scheduler together.",
    "Unscheduled": "The scheduler has not bound all its pods; the message has its words.",
    "BindTimeout": "A pod lost its planned node to somebody: everything is released and tried again.",
    "Starting": "Its leader does not exist yet.",
    "Loading": "The model is being loaded; slow is not failed.",
    "NoTokenYet": "The leader is ready and has not produced a token for Berth.",
    "LeaderNotReady": "The leader served and is not ready now; it gets no requests.",
    "Unreachable": "Its node is late and its leader does not answer: cut off on suspicion, nothing else.",
    "Serving": "It answers with tokens and gets requests.",
    "Draining": "It gets no new requests and finishes those it has.",
    "Stopping": "Its requests are finished, or drainTimeout is over; its pods are being deleted.",
    "Drained": "No pod is left.",
    "RestartedInPlace": "A container of its only pod ended and started again; forgiven once per recovery.window.",
    "RestartedAgain": "A container ended again within recovery.window.",
    "MemberFailed": "A pod ended for good.",
    "MemberRestarted": "A container of a group of several pods ended: half a model answers nothing.",
    "MemberDeleted": "Somebody deleted a pod.",
    "NodeDrained": "A pod that was not ready yet was thrown off a cordoned node.",
    "MemberEvicted": "A pod is thrown off its node by a taint.",
    "MemberMissing": "A pod is gone.",
    "MemberReplaced": "A pod of the right name is not the one the group was made of.",
    "GPUUnhealthy": "A GPU is reported broken by its device plugin, a node condition or a taint.",
    "NodeSilent": "Its node's Lease stopped, and its leader does not answer or the control plane gave the node up.",
    "NodeDeleted": "Its node does not exist any more.",
    "EngineFrozen": "The engine has work, makes no progress, and gave Berth no token.",
    "AwaitingFlip": "It answers with tokens, and gets requests together with the other groups of its move.",
    "AwaitingVerdict": "A move has left it: whole and without requests until the move is judged.",
    "Resuming": "It had no requests, and gets them again once it says that it takes them.",
    "Requested": "Somebody asked for its replacement by annotation.",
    "DeadlineExceeded": "It did not serve within update.deadline while what it was to replace still stands.",
    "Failed": "It failed; why was lost.",
}
"""Every reason of a ReplicaGroup's condition Ready that is Berth's own; containers that wait add the kubelet's."""


@dataclass(frozen=True)
class Condition:
    """One condition as a pass wants it; the time is added on merging."""

    type: str
    status: bool | None
    """None is Unknown."""
    reason: str
    message: str = ""


def frozen_condition(why: str) -> Condition:
    """Whether evacuations are frozen, and `why` in words."""
    if why:
        return Condition(EVACUATIONS_FROZEN, True, "SilenceNotTrusted", why)
    return Condition(EVACUATIONS_FROZEN, False, "SilenceTrusted")


def merge(
    wanted: Iterable[Condition], stored: Iterable[Mapping[str, Any]], generation: int, now: float
) -> list[dict[str, Any]]:
    """The conditions to store, sorted by type."""
    before = {str(condition.get("type")): condition for condition in stored}
    merged = []
    for condition in sorted(wanted, key=lambda condition: condition.type):
        status = {True: "True", False: "False", None: "Unknown"}[condition.status]
        old = before.get(condition.type)
        same = old is not None and old.get("status") == status and old.get("lastTransitionTime")
        merged.append(
            {
                "type": condition.type,
                "status": status,
                "reason": condition.reason,
                "message": condition.message[:1024],
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if same and old else timestamp(now),
            }
        )
    return merged
