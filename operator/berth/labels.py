"""Every name that Berth writes into the cluster: API group, labels, annotations, field managers, finite word lists.

One module so that a search for a label finds its writer, its reader and its documentation. Conditions and their
reasons live in `berth.core.conditions`; metric names in `berth.metrics`.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "berth.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

# --- labels -----------------------------------------------------------------------------------------------------------
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY_VALUE: Final = "berth"
DEPLOYMENT: Final = f"{GROUP}/deployment"
"""Name of the LLMDeployment; for people. Selectors use DEPLOYMENT_UID, which cannot be taken over."""
DEPLOYMENT_UID: Final = f"{GROUP}/deployment-uid"
GROUP_LABEL: Final = f"{GROUP}/group"
"""Group of the deployment: g0, g1, ..."""
INCARNATION: Final = f"{GROUP}/incarnation"
REPLICA_GROUP: Final = f"{GROUP}/replica-group"
"""Name of the ReplicaGroup object a pod belongs to."""
MEMBER: Final = f"{GROUP}/member"
"""leader or worker; only leaders are ever selected by a Service."""
MEMBER_INDEX: Final = f"{GROUP}/member-index"
SERVING: Final = f"{GROUP}/serving"
"""On leader pods, written by MANAGER_SERVING alone: "true" exactly while the group may get requests."""
POOL: Final = f"{GROUP}/pool"
TEMPLATE_HASH: Final = f"{GROUP}/template-hash"
PLACEMENT_HASH: Final = f"{GROUP}/placement-hash"
PRECISION: Final = f"{GROUP}/precision"
TENSOR_PARALLEL: Final = f"{GROUP}/tensor-parallel"
PIPELINE_PARALLEL: Final = f"{GROUP}/pipeline-parallel"
LIFECYCLE: Final = f"{GROUP}/lifecycle"
"""On ReplicaGroups; the part of their state that must survive a wiped status: see LIFECYCLES."""
MOVE_ID: Final = f"{GROUP}/move-id"
ROLE: Final = f"{GROUP}/role"
"""Part of a ReplicaGroup in the move MOVE_ID: see ROLES. Both are taken away when the move has ended."""
SIMULATED_KUBELET: Final = f"{GROUP}/simulated-kubelet"
"""On nodes without a kubelet: "running" while kwok stands in for one."""

LEADER: Final = "leader"
WORKER: Final = "worker"

RESERVED: Final = "reserved"
"""Capacity is held; members may be missing and are still to be created."""
COMMITTED: Final = "committed"
"""All members were created once; from here on a missing member is a failure."""
RETIRING: Final = "retiring"
"""On its way out on purpose: drain, then delete."""
FAILED: Final = "failed"
"""Lost; kept as evidence for recovery.window."""
LIFECYCLES: Final = (RESERVED, COMMITTED, RETIRING, FAILED)

INCOMING: Final = "incoming"
"""Of the new placement, without requests until all of them are proven."""
INCUMBENT: Final = "incumbent"
"""Of the new placement, with requests."""
OUTGOING: Final = "outgoing"
"""Of the old placement, without requests, kept until the verdict."""
RETURNING: Final = "returning"
"""Of the new placement, given up again after the verdict."""
ROLES: Final = (INCOMING, INCUMBENT, OUTGOING, RETURNING)

# --- annotations ------------------------------------------------------------------------------------------------------
REQUEST: Final = f"{GROUP}/request"
"""What a person asks for once: `failover g1`, `move ...`, `rollback`."""
FAILED_AT: Final = f"{GROUP}/failed-at"
FAILURE_REASON: Final = f"{GROUP}/failure-reason"
FAILURE_MESSAGE: Final = f"{GROUP}/failure-message"
RETIRED_AT: Final = f"{GROUP}/retired-at"
ACCEPTED_RESTART: Final = f"{GROUP}/accepted-restart"
"""On ReplicaGroups: `<restart count>@<time>` of the restart in place that was forgiven."""
TOKEN_RESTARTS: Final = f"{GROUP}/token-at-restart"
"""On leader pods, beside SERVING: restart count of the container life that was seen to produce a token."""
IMAGE: Final = f"{GROUP}/image"
"""On ReplicaGroups: the engine image resolved for this revision."""
CONFIG_MAP: Final = f"{GROUP}/config-map"
"""On ReplicaGroups: the immutable ConfigMap this incarnation runs, so that an operator upgrade cannot swap it."""

MOVE: Final = f"{GROUP}/move"
"""On ReplicaGroups made for a move: its record, as JSON."""
FLIPPED_AT: Final = f"{GROUP}/flipped-at"
"""On the same: when they were given requests."""
MOVE_RESULT: Final = f"{GROUP}/move-result"
"""On the same, once the move is taken back: `<result>: <words>`."""
ANSWERED: Final = f"{GROUP}/answered"
"""On ReplicaGroups: the last answer to a REQUEST that still stands, as `status.request` has it, should that be lost."""
ENDED_MOVES: Final = f"{GROUP}/ended-moves"
"""On ReplicaGroups: the deployment's moves that ended, as `status.moves` has them, should that be lost."""

# --- scheduling -------------------------------------------------------------------------------------------------------
SCHEDULING_GATE: Final = f"{GROUP}/all-members-present"

# --- field managers ---------------------------------------------------------------------------------------------------
MANAGER: Final = "berth"
MANAGER_STATUS: Final = "berth-status"
MANAGER_SERVING: Final = "berth-serving"

# --- the pod's contract with the launcher -----------------------------------------------------------------------------
MODEL_NAME: Final = "tensorrt_llm"
"""Name of the one Triton model of every group."""
PORT_HTTP: Final = 8000
PORT_GRPC: Final = 8001
PORT_METRICS: Final = 8002
PORT_LAUNCHER: Final = 8003
"""The launcher's small HTTP page: /readyz, /livez, /drain, /metrics, /state."""

MAX_DEPLOYMENT_NAME: Final = 40
"""Leaves room in 63 characters for "-<uid hash 5>-g<group>-<incarnation>-<member>"."""
