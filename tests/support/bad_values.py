"""Values that must be refused wherever a field takes such: paths, variables, labels, numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.samples import BASES, Manifest, edit

VARIANT = "spec.model.variants.0"
FIXED = "spec.placement.fixed.allocations.0"
TRAFFIC = "spec.traffic"
_PATH = f"{VARIANT}.source.persistentVolumeClaim.path"
BASE = "fixed-placement/LLMDeployment/llama-70b"


@dataclass(frozen=True)
class Bad:
    """One object that must be refused."""

    name: str
    changes: Mapping[str, Any]
    field: str
    words: str = ""
    base: str = BASE

    @property
    def manifest(self) -> Manifest:
        return edit(BASES[self.base], self.changes)


def paths() -> list[Bad]:
    hostile = {
        "parent": "../../etc",
        "inner parent": "models/../../etc/passwd",
        "trailing parent": "models/..",
        "absolute": "/etc/passwd",
        "file url": "file:///etc/passwd",
        "http url": "http://169.254.169.254/latest",
        "substitution": "models;$(id)",
        "backticks": "models/`id`",
        "NUL": "models\0/x",
        "newline": "models\nx",
        "trailing newline": "models\n",
        "blank": "models /x",
        "backslash": "models\\x",
        "homoglyph": "mod\u0435ls",
        "full-width dots": "\uff0e\uff0e/etc",
        "double slash": "models//x",
        "trailing slash": "models/",
        "hidden": ".ssh/id_rsa",
        "dot": ".",
        "tilde": "~/models",
        "dash option": "-rf",
    }
    field = "spec.model.variants[0].source.persistentVolumeClaim.path"
    refused = [
        Bad(f"model path: {name}", {_PATH: path}, field, "must be a relative path") for name, path in hostile.items()
    ]
    return [
        *refused,
        Bad("model path: 4 KiB", {_PATH: "a/" * 2048 + "a"}, field),
        Bad("model path: empty", {_PATH: ""}, field),
    ]


def environment() -> list[Bad]:
    reserved = (
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PMIX_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "BERTH_GROUP",
        "HF_TOKEN",
        "PYTHONPATH",
        "PATH",
        "KUBERNETES_SERVICE_HOST",
    )
    refused = [
        Bad(f"env: {name}", {"spec.pod.env": [{"name": name, "value": "x"}]}, "spec.pod.env[0].name", "is reserved")
        for name in reserved
    ]
    malformed = [
        Bad(f"env: {name!r}", {"spec.pod.env": [{"name": name, "value": "x"}]}, "spec.pod.env[0].name", "variable name")
        for name in ("A-B", "1A", "A=B", "A B", "A\n")
    ]
    return [
        *refused,
        *malformed,
        Bad("env: empty name", {"spec.pod.env": [{"name": "", "value": "x"}]}, "spec.pod.env[0].name"),
        Bad("env: NUL", {"spec.pod.env": [{"name": "A", "value": "x\0y"}]}, "spec.pod.env[0].value", "NUL"),
        Bad("env: huge value", {"spec.pod.env": [{"name": "A", "value": "x" * 4097}]}, "spec.pod.env[0].value"),
        Bad("env: twice", {"spec.pod.env": [{"name": "A"}, {"name": "A"}]}, "spec.pod.env"),
        Bad("env: too many", {"spec.pod.env": [{"name": f"A{i}"} for i in range(65)]}, "spec.pod.env"),
    ]


def metadata() -> list[Bad]:
    keys = (
        "berth.dev/serving",
        "x.berth.dev/serving",
        "app.kubernetes.io/managed-by",
        "kubernetes.io/hostname",
        "pod-security.kubernetes.io/enforce",
        "scheduling.k8s.io/x",
    )
    return [
        *(Bad(f"label: {key}", {"spec.pod.labels": {key: "x"}}, "spec.pod.labels", "reserved") for key in keys),
        *(
            Bad(f"annotation: {k}", {"spec.pod.annotations": {k: "x"}}, "spec.pod.annotations", "reserved")
            for k in keys
        ),
        Bad("label: bad key", {"spec.pod.labels": {"a b": "x"}}, "spec.pod.labels", "example.com/team"),
        Bad("label: two slashes", {"spec.pod.labels": {"a/b/c": "x"}}, "spec.pod.labels", "example.com/team"),
        Bad("label: bad value", {"spec.pod.labels": {"team": "a b"}}, "spec.pod.labels", "must be a label value"),
        Bad("label: long value", {"spec.pod.labels": {"team": "a" * 64}}, "spec.pod.labels"),
        Bad("annotation: long value", {"spec.pod.annotations": {"a": "a" * 4097}}, "spec.pod.annotations"),
        Bad("annotation: too many", {"spec.pod.annotations": {f"a{i}": "" for i in range(33)}}, "spec.pod.annotations"),
    ]


def numbers() -> list[Bad]:
    """Zero, negative, huge, fractional and no numbers at all, wherever there is one."""
    integers = {
        "spec.replicas": (0, -1, 1_000_001),
        "spec.scaling.min": (0, -1, 10**9),
        "spec.scaling.max": (0, -5, 10**9),
        "spec.replicaGroups.minAvailable": (-1, 10**6),
        "spec.replicaGroups.recovery.maxFailures": (0, -1, 10**6),
        "spec.placement.moves.maxPerDay": (0, -1, 1000),
        "spec.update.maxUnavailable": (-1, 10**6),
        "spec.objectives.limits.gpus": (0, -1, 10**9),
        f"{FIXED}.tensorParallel": (0, -2, 128, 2**40),
        f"{FIXED}.pipelineParallel": (0, -2, 128),
        f"{FIXED}.groups": (0, -1, 10**6),
        f"{FIXED}.maxBatchSize": (0, -1, 10**9),
        f"{FIXED}.maxNumTokens": (0, -1, 10**9),
        f"{TRAFFIC}.inputTokens.mean": (0, -1, 10**12),
        f"{TRAFFIC}.inputTokens.p99": (0, -1, 10**12),
        f"{TRAFFIC}.outputTokens.maxRequested": (0, -1, 10**12),
    }
    quantities = {
        f"{TRAFFIC}.requestsPerSecond": (
            0,
            "0",
            "-1",
            -1,
            "1e3",
            "NaN",
            "Inf",
            "",
            "1000000",
            10**9,
            "1,5",
            " 1",
            "1\n",
        ),
        f"{TRAFFIC}.peakToMean": (0, "0.99", "101", "NaN"),
        f"{TRAFFIC}.peakInputToMean": ("0.09", "11", "NaN"),
        f"{TRAFFIC}.peakOutputToMean": ("0.09", 11, "NaN"),
        f"{TRAFFIC}.cachedInputFraction": ("-0.1", "1", 1, "NaN"),
        "spec.objectives.availability": ("0", "1", 1, "1.5", "0.49", "99.95%", "NaN"),
        "spec.objectives.limits.costPerHour": (0, "-40", "1e9", "free"),
        "spec.placement.moves.minimumGain": ("0", "1.01", "-0.1", "15%"),
    }
    durations = {
        "spec.objectives.timeToFirstToken.p95": ("0s", "-1s", "1500", "1 s", "2h", "NaN", "", "1d"),
        "spec.objectives.timePerOutputToken.p95": ("0ms", "2m", "50", "50MS"),
        "spec.replicaGroups.drainTimeout": ("0s", "25h", "5min", "-5m"),
        "spec.replicaGroups.recovery.window": ("30s", "8d", "999999999h"),
        "spec.replicaGroups.recovery.initialBackoff": ("0s", "2h"),
        "spec.placement.moves.payBackWithin": ("1m", "10000h"),
        "spec.placement.moves.cooldown": ("1s", "10000h"),
        "spec.update.deadline": ("1s", "25h"),
    }
    return [
        *(
            Bad(f"{path}: {value}", {path: value}, bracketed(path))
            for path, values in integers.items()
            for value in values
        ),
        *(
            Bad(f"{path}: {value!r}", {path: value}, path, "must be a decimal number, ")
            for path, values in quantities.items()
            for value in values
        ),
        *(
            Bad(f"{path}: {value!r}", {path: value}, path, "must be a duration from ")
            for path, values in durations.items()
            for value in values
        ),
        *(Bad(f"no float: {path}", {path: 1.5}, bracketed(path)) for path in (*integers, *quantities)),
    ]


def bracketed(path: str) -> str:
    return path.replace(".0.", "[0].")
