"""Deployments that together reach every branch of rendering, and all objects of one group of each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from berth.api.gpupool import GPUPool, parse_gpupool
from berth.api.llmdeployment import LLMDeployment, parse_llmdeployment
from berth.core.render import (
    DeploymentRef,
    GroupTemplate,
    group_template,
    render_config_map,
    render_disruption_budget,
    render_group_service,
    render_pods,
    render_replica_group,
    render_services,
)

Manifest = dict[str, Any]

ENGINE_FILES = {
    "/opt/berth/lib/berth/engine/__init__.py": "# engine\n",
    "/opt/berth/lib/berth/engine/launcher.py": "# launcher\n",
    "/models/tensorrt_llm/config.pbtxt": "# configuration\n",
    "/models/tensorrt_llm/1/model.py": "# model\n",
}
"""Stand-ins: golden files must not change with every edit of the engine."""
IMAGE = "registry.example/tritonserver:26.07-trtllm-python-py3"

CLAIM = {"persistentVolumeClaim": {"claimName": "models", "path": "llama-3.1-70b/fp8"}}
HUB = {"huggingFace": {"repository": "example/Llama-3.1-70B-FP8", "revision": "0123abc", "tokenSecretName": "hub"}}
SSH = {"launcher": "SSH", "sshSecretName": "group-ssh"}
H100 = {
    "gpu": "H100-SXM-80",
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "resourceName": "nvidia.com/gpu",
    "gpusPerNode": 8,
}
TRAFFIC = {
    "requestsPerSecond": "5.4",
    "inputTokens": {"mean": 1155, "p95": 4083, "max": 14050},
    "outputTokens": {"mean": 211, "p95": 500, "maxRequested": 1024},
}
EVERYTHING = {
    "labels": {"team": "search", "app.kubernetes.io/part-of": "assistant"},
    "annotations": {"example.com/contact": "on-call: search; see the wiki"},
    "env": [{"name": "NCCL_DEBUG", "value": "WARN"}, {"name": "HOME", "value": "/tmp/home"}],
    "resources": {"requests": {"cpu": "12", "memory": "200Gi"}, "limits": {"memory": "256Gi", "rdma/hca": 1}},
    "tolerations": [
        {"key": "dedicated", "value": "llm", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
    ],
    "priorityClassName": "high",
    "schedulerName": "kueue-scheduler",
    "imagePullSecrets": [{"name": "registry"}],
    "runtimeClassName": "nvidia",
}


def spec(
    backend: str, source: Mapping[str, Any], tensor: int = 1, pipeline: int = 1, **changes: Mapping[str, Any]
) -> Manifest:
    """A spec with a fixed placement; `changes` are merged over its top-level fields."""
    variant: Manifest = {"name": "fp8", "precision": "fp8", "kvPrecision": "fp8", "source": source}
    if backend == "tensorrt":
        variant |= {"gpus": ["H100-SXM-80"], "tensorParallel": tensor, "pipelineParallel": pipeline}
    allocation = {
        "pool": "h100",
        "variant": "fp8",
        "tensorParallel": tensor,
        "pipelineParallel": pipeline,
        "groups": 2,
        "maxBatchSize": 128,
        "maxNumTokens": 8192,
    }
    content: Manifest = {
        "model": {"name": "llama-3.1-70b-instruct", "variants": [variant]},
        "traffic": TRAFFIC,
        "objectives": {"timeToFirstToken": {"p95": "1500ms"}, "timePerOutputToken": {"p95": "50ms"}},
        "placement": {"mode": "Fixed", "fixed": {"allocations": [allocation]}},
        "engine": {"backend": backend},
    }
    for field, change in changes.items():
        content[field] = {**content.get(field, {}), **change}
    return copy.deepcopy(content)


CASES: dict[str, Manifest] = {
    "pytorch-claim": spec("pytorch", CLAIM, 2),
    "pytorch-hub": spec("pytorch", HUB, 4),
    "pytorch-ray-claim": spec("pytorch", CLAIM, 8, 2),
    "pytorch-ray-hub": spec("pytorch", HUB, 8, 2),
    "pytorch-ssh-claim": spec("pytorch", CLAIM, 4, 4, engine={"multiNode": SSH}),
    "pytorch-everything": spec("pytorch", CLAIM, 2, pod=EVERYTHING, replicaGroups={"drainTimeout": "10m"}),
    "tensorrt-one-gpu": spec("tensorrt", CLAIM),
    "tensorrt-claim": spec("tensorrt", CLAIM, 4),
    "tensorrt-ssh-claim": spec("tensorrt", CLAIM, 8, 2, engine={"multiNode": SSH}),
    "simulated-claim": spec("simulated", CLAIM, 2),
    "simulated-hub": spec("simulated", HUB, 1),
    "simulated-several-pods": spec("simulated", CLAIM, 8, 2),
}
UNPLANNED = ("pytorch-everything", "pytorch-ray-hub")
"""Cases in which another scheduler chooses the nodes."""


def deployment(content: Mapping[str, Any], **metadata: Any) -> LLMDeployment:
    base = {"name": "llama-70b", "namespace": "serving", "uid": "6f1c9d1e-58a4-4f1e-9e55-0a4a6c0f7b11"}
    return parse_llmdeployment({"metadata": base | metadata, "spec": content}, known_fields_only=True)


def pool(**changes: Any) -> GPUPool:
    return parse_gpupool({"metadata": {"name": "h100"}, "spec": H100 | changes}, known_fields_only=True)


def template(content: Mapping[str, Any], image: str = IMAGE, **pool_changes: Any) -> GroupTemplate:
    found = deployment(content)
    return group_template(found, found.spec.fixed_allocations[0], pool(**pool_changes), image, ENGINE_FILES)


def stored(replica_group: Mapping[str, Any], uid: str = "b9b7c3f0-2f7c-4a52-8f2b-0d8a4e6d9c22") -> Manifest:
    """As the API server gives a created object back."""
    return {**replica_group, "metadata": {**replica_group["metadata"], "uid": uid}}


def new_group(made: GroupTemplate, planned_nodes: Sequence[str] | None = None) -> Manifest:
    nodes = [f"h100-node-{member}" for member in range(made.members)] if planned_nodes is None else planned_nodes
    return render_replica_group(made, made.reference, 0, 7, nodes)


def group(made: GroupTemplate, planned_nodes: Sequence[str] | None = None) -> Manifest:
    return stored(new_group(made, planned_nodes))


def pods(made: GroupTemplate, planned_nodes: Sequence[str] | None = None) -> list[Manifest]:
    return render_pods(made, group(made, planned_nodes))


def everything(made: GroupTemplate, planned_nodes: Sequence[str] | None = None) -> list[Manifest]:
    """All objects that one group of a deployment brings, in the order they are created."""
    replica_group = group(made, planned_nodes)
    services = [render_group_service(replica_group)] if made.members > 1 else []
    return [
        render_config_map(made),
        new_group(made, planned_nodes),
        *services,
        *render_pods(made, replica_group),
    ]


def of_deployment(made: GroupTemplate) -> list[Manifest]:
    """The objects every deployment has once."""
    reference: DeploymentRef = made.reference
    return [*render_services(reference), render_disruption_budget(reference)]
