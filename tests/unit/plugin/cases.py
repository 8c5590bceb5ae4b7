"""Deployments as the API server shows them, in every state that a screen has words for."""

from __future__ import annotations

import hashlib
from typing import Any

NOW = 1_789_997_600.0
"""2026-09-21T13:33:20Z."""
UID = "3f2b8a52-9a3f-4d7e-9a31-0f6f5b7c1d2e"
Manifest = dict[str, Any]


def condition(kind: str, status: str, reason: str, message: str = "") -> Manifest:
    at = "2026-09-18T13:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}


def allocation(pool: str = "h100", precision: str = "fp8", tp: int = 2, groups: int = 2) -> Manifest:
    return {
        "pool": pool,
        "variant": precision,
        "precision": precision,
        "tensorParallel": tp,
        "pipelineParallel": 1,
        "groups": groups,
    }


def deployment(name: str = "llama-70b", **status: Any) -> Manifest:
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": "serving", "uid": UID, "generation": 3},
        "spec": {
            "model": {"name": "llama-3.1-70b-instruct", "variants": [{"name": "fp8"}, {"name": "bf16"}]},
            "traffic": {
                "requestsPerSecond": "5.4",
                "inputTokens": {"mean": 1024},
                "outputTokens": {"mean": 256},
            },
            "objectives": {
                "timeToFirstToken": {"p95": "1500ms"},
                "timePerOutputToken": {"p95": "50ms"},
                "availability": "0.9995",
            },
        },
        "status": status,
    }


def healthy() -> Manifest:
    """Serves with two groups, one of which replaced a failed one."""
    return deployment(
        conditions=[
            condition("Accepted", "True", "Valid"),
            condition("Available", "True", "EnoughGroups"),
            condition("Ready", "True", "AllGroupsServe"),
            condition("MetricsAvailable", "True", "MetricsFresh"),
            condition("PlacementOutdated", "False", "PlacementCurrent"),
        ],
        summary={
            "ready": "2/2",
            "placement": "h100 fp8 tp2",
            "ttftP95": "412ms",
            "tpotP95": "24ms",
            "message": "Ready",
        },
        url="http://llama-70b.serving:8000",
        needed=1,
        replicas=2,
        readyReplicas=2,
        groupCounts={"Serving": 2},
        groups=[
            {
                "name": "g1",
                "pool": "h100",
                "nodes": ["h100-node-1"],
                "state": "Serving",
                "incarnation": 1,
                "since": "2026-09-18T13:00:00Z",
            },
            {
                "name": "g4",
                "pool": "h100",
                "nodes": ["h100-node-3"],
                "state": "Serving",
                "incarnation": 2,
                "since": "2026-09-21T13:19:00Z",
            },
        ],
        placement={
            "allocations": [allocation()],
            "predicted": {"ttftP95": "460ms", "tpotP95": "22.8ms", "outputTokensPerSecond": {"mid": "1382"}},
            "measured": {"ttftP95": "412ms", "tpotP95": "24.1ms", "outputTokensPerSecond": {"mid": "365"}},
            "predictionError": {"ttftP95": "0.12", "tpotP95": "-0.05"},
            "limitedBy": "KV room",
            "costPerHour": "11.96",
            "costPerMillionOutputTokens": "2.40",
            "reason": "cheapest that meets all objectives at 5.4 req/s",
        },
        candidates=[
            {
                "allocations": [allocation()],
                "chosen": True,
                "predicted": {"ttftP95": "460ms", "tpotP95": "22.8ms"},
                "gpus": 4,
                "load": "0.61",
                "availability": "0.99991",
                "costPerHour": "11.96",
                "costPerMillionOutputTokens": "2.40",
                "limitedBy": "KV room",
                "factors": {
                    "communication": "1.3 ms per token",
                    "failure": "one GPU takes 2 down",
                },
            },
            {
                "allocations": [allocation("a100-40", "bf16", 8)],
                "predicted": {"ttftP95": "920ms", "tpotP95": "31ms"},
                "gpus": 16,
                "load": "0.58",
                "availability": "0.99991",
                "costPerHour": "20.64",
                "costPerMillionOutputTokens": "4.15",
                "limitedBy": "bandwidth",
            },
            {"allocations": [allocation("a100-40", "fp8", 4, 1)], "rejected": "A100 has no FP8"},
        ],
        availability={"predicted": "0.99991", "target": "0.9995", "limitedBy": "node repair time"},
        spread={"topologyKey": "zone", "message": "losing any node or zone keeps 1 of 1 needed groups"},
        lastFailover={
            "group": "g4",
            "at": "2026-09-21T13:19:00Z",
            "reason": "GPU fault on h100-node-2 (Xid 79)",
            "trafficCutAfter": "4.1s",
            "replacedAfter": "5s",
            "restoredAfter": "96s",
        },
        calibration=[{"scope": "h100", "metric": "decode", "factor": "1.04", "samples": 212}],
    )


def moving() -> Manifest:
    """On its way to another pool, degraded, and with a request that was refused."""
    found = healthy()
    status = found["status"]
    status["conditions"] += [
        condition("Degraded", "True", "GroupFailed", "g4: NodeSilent: no sign of h100-node-3"),
        condition("ObjectivesMet", "False", "ObjectivesMissed", "TTFT p95 1.9s, objective 1.5s: 88.1 % within it"),
    ]
    status["summary"] |= {"ready": "1/2", "message": "Moving to a100-40 bf16 tp8 pp1 x 2: WarmingUp"}
    status["readyReplicas"] = 1
    status["groups"][1] |= {"state": "Failed", "reason": "NodeSilent: no sign of h100-node-3"}
    status["moves"] = {
        "current": {
            "id": "0a1b2c3d",
            "phase": "WarmingUp",
            "from": [allocation()],
            "to": [allocation("a100-40", "bf16", 8)],
            "since": "2026-09-21T13:31:00Z",
            "deadline": "2026-09-21T13:45:00Z",
        },
        "recent": [{"id": "f", "finishedAt": "2026-09-20T13:00:00Z", "result": "RolledBack", "reason": "slower"}],
    }
    asked = "2026-09-21T13:30:20.000000Z"
    refused = {"result": "Refused", "message": "there is no group g9"}
    status["request"] = {"text": f"failover g9 @{asked}", "at": asked, **refused}
    return found


def refused() -> Manifest:
    """Never placed."""
    words = "fp8 cannot run on pool a100-40 (A100): use bf16 or int4-awq"
    return deployment(
        "x",
        conditions=[
            condition("Accepted", "False", "UnsupportedPrecision", words),
            condition("Available", "False", "TooFewGroups", "0 groups serve, 1 are needed"),
        ],
        summary={"ready": "0/2", "message": f"Not accepted: {words}"},
        needed=1,
        url="http://x.serving:8000",
    )


def fresh() -> Manifest:
    """Nobody has looked at it."""
    found = deployment("new")
    del found["status"]
    return found


LIVE: Manifest = {
    "uid": UID,
    "fresh": True,
    "requestsPerSecond": "5.3",
    "outputTokensPerSecond": "365",
    "running": 13,
    "waiting": 0,
    "ttftP95": "398ms",
    "tpotP95": "23.9ms",
    "groups": [
        {"name": "g1", "incarnation": 1, "outputTokensPerSecond": "186", "running": 7, "waiting": 0, "kvUse": "41%"},
        {"name": "g4", "incarnation": 2, "outputTokensPerSecond": "179", "running": 6, "waiting": 0, "kvUse": "39%"},
    ],
}
"""What the operator's page says of `healthy()`."""


def event(about: str, reason: str, message: str, at: str, kind: str = "Pod", **more: Any) -> Manifest:
    return {
        "metadata": {"name": f"{about}.{at}", "namespace": "serving"},
        "involvedObject": {"kind": kind, "name": about, **({"uid": UID} if kind == "LLMDeployment" else {})},
        "type": "Normal",
        "reason": reason,
        "message": message,
        "eventTime": at,
        **more,
    }


PREFIX = f"llama-70b-{hashlib.sha256(UID.encode()).hexdigest()[:5]}"
EVENTS = [
    event(f"{PREFIX}-g4-2-0", "Scheduled", "assigned to h100-node-3", "2026-09-21T13:19:06.000000Z"),
    event(f"{PREFIX}-g4-1", "GroupFailed", "g4 lost: Xid 79", "2026-09-21T13:19:04.100000Z", "ReplicaGroup"),
    event(
        "llama-70b",
        "GroupFailed",
        "g4 lost: Xid 79",
        "2026-09-21T13:19:04.200000Z",
        "LLMDeployment",
        type="Warning",
        series={"count": 3, "lastObservedTime": "2026-09-21T13:20:00.000000Z"},
    ),
    event("llama-70b-abcde-g0-1-0", "Scheduled", "of an earlier deployment", "2026-09-21T13:19:06.000000Z"),
    event("llama-70b-2", "Valid", "of a neighbour", "2026-09-21T13:19:06.000000Z", "ReplicaGroup"),
    event(f"{PREFIX}-g4-2-0", "BackOff", "Back-off\n  restarting", "2026-09-21T13:21:00.000000Z", type="Warning"),
]
