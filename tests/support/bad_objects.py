"""Objects that must be refused, and the words that must say so: one table for the models and for the API server.

`field` is where the message must point, `words` what it must contain (bound or remedy) wherever the refusal is a rule
of ours. Bounds that are OpenAPI keywords have words of the API server's own.
"""

from __future__ import annotations

from tests.support.bad_values import (
    BASE,
    FIXED,
    TRAFFIC,
    VARIANT,
    Bad,
    bracketed,
    environment,
    metadata,
    numbers,
    paths,
)
from tests.support.samples import REMOVED

_MODEL = "spec.model"
_ARCHITECTURE = "spec.model.architecture"
_SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
AUTO = "llama-70b/LLMDeployment/llama-70b"
POOL = "pools/GPUPool/h100"
_NAME_WORDS = "at most 40 lower case letters"

BAD_OBJECTS: list[Bad] = [
    # --- the name
    Bad("name: 41 characters", {"metadata.name": "a" * 41}, "metadata.name", _NAME_WORDS),
    Bad("name: 253 characters", {"metadata.name": "a" * 253}, "metadata.name", _NAME_WORDS),
    Bad("name: leading digit", {"metadata.name": "7b"}, "metadata.name", _NAME_WORDS),
    Bad("name: dot", {"metadata.name": "llama-3.1"}, "metadata.name", _NAME_WORDS),
    # --- model
    Bad("model: no name", {f"{_MODEL}.name": REMOVED}, "spec.model.name"),
    Bad("model: blank in name", {f"{_MODEL}.name": "llama 70b"}, "spec.model.name", "must be a model name"),
    Bad("model: no variants", {f"{_MODEL}.variants": []}, "spec.model.variants"),
    Bad("model: variants missing", {f"{_MODEL}.variants": REMOVED}, "spec.model.variants"),
    Bad("variant: same name twice", {f"{_MODEL}.variants.1.name": "fp8"}, "spec.model.variants"),
    Bad("variant: unknown precision", {f"{VARIANT}.precision": "fp7"}, "spec.model.variants[0].precision", "bf16"),
    Bad("variant: int4 KV cache", {f"{VARIANT}.kvPrecision": "int4-awq"}, "spec.model.variants[0].kvPrecision", "fp8"),
    Bad("variant: no source", {f"{VARIANT}.source": {}}, "spec.model.variants[0].source", "exactly one of"),
    Bad(
        "variant: two sources",
        {f"{VARIANT}.source.huggingFace": {"repository": "a/b"}},
        "spec.model.variants[0].source",
        "exactly one of",
    ),
    Bad("variant: no GPUs", {f"{VARIANT}.gpus": []}, "spec.model.variants[0].gpus"),
    Bad("variant: GPU twice", {f"{VARIANT}.gpus": ["H100-SXM-80"] * 2}, "spec.model.variants[0].gpus"),
    Bad(
        "variant: engines without layout",
        {f"{VARIANT}.backend": "tensorrt", f"{VARIANT}.gpus": ["H100-SXM-80"]},
        "spec.model.variants[0]",
        "give gpus, tensorParallel and pipelineParallel",
    ),
    Bad(
        "hugging face: URL",
        {f"{VARIANT}.source": {"huggingFace": {"repository": "https://huggingface.co/a/b"}}},
        "spec.model.variants[0].source.huggingFace.repository",
        "give owner/name",
    ),
    Bad(
        "hugging face: parent folder as revision",
        {f"{VARIANT}.source": {"huggingFace": {"repository": "a/b", "revision": "../x"}}},
        "spec.model.variants[0].source.huggingFace.revision",
        "commit, tag or branch",
    ),
    Bad(
        "claim: not a name",
        {f"{VARIANT}.source.persistentVolumeClaim.claimName": "Models_1"},
        "spec.model.variants[0].source.persistentVolumeClaim.claimName",
        "must be a Kubernetes name",
    ),
    *paths(),
    # --- architecture
    *(
        Bad(f"architecture: no {key}", {_ARCHITECTURE: {**_SIZES}, f"{_ARCHITECTURE}.{key}": REMOVED}, _ARCHITECTURE)
        for key in _SIZES
        if key != "num_key_value_heads"
    ),
    *(
        Bad(f"architecture: {key} {value}", {_ARCHITECTURE: {**_SIZES, key: value}}, f"{_ARCHITECTURE}.{key}")
        for key in _SIZES
        for value in (0, -1, 2**62)
    ),
    Bad(
        "architecture: KV heads",
        {_ARCHITECTURE: {**_SIZES, "num_key_value_heads": 5}},
        _ARCHITECTURE,
        "num_key_value_heads must divide num_attention_heads",
    ),
    Bad(
        "architecture: heads",
        {_ARCHITECTURE: {**_SIZES, "hidden_size": 4097}},
        _ARCHITECTURE,
        "num_attention_heads must divide hidden_size",
    ),
    Bad(
        "architecture: experts without choice",
        {_ARCHITECTURE: {**_SIZES, "num_local_experts": 8}},
        _ARCHITECTURE,
        "num_experts_per_tok",
    ),
    Bad(
        "architecture: choice without experts",
        {_ARCHITECTURE: {**_SIZES, "num_experts_per_tok": 2}},
        _ARCHITECTURE,
        "give both or none",
    ),
    Bad(
        "architecture: too few experts",
        {_ARCHITECTURE: {**_SIZES, "num_experts": 2, "num_experts_per_tok": 4}},
        _ARCHITECTURE,
        "must not be above the number of experts",
    ),
    Bad(
        "architecture: experts twice",
        {_ARCHITECTURE: {**_SIZES, "num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2}},
        _ARCHITECTURE,
        "mean the same",
    ),
    # --- traffic and objectives
    Bad("traffic: missing in Auto", {TRAFFIC: REMOVED}, "spec", "traffic is required unless", base=AUTO),
    Bad("traffic: open without rate", {f"{TRAFFIC}.requestsPerSecond": REMOVED}, TRAFFIC, "arrival Open needs"),
    Bad("traffic: open with concurrency", {f"{TRAFFIC}.concurrency": 8}, TRAFFIC, "arrival Open needs"),
    Bad("traffic: closed with rate", {f"{TRAFFIC}.arrival": "Closed"}, TRAFFIC, "arrival Closed needs"),
    Bad("traffic: unknown arrival", {f"{TRAFFIC}.arrival": "Poisson"}, "spec.traffic.arrival", "Open"),
    Bad(
        "traffic: mean above p95",
        {f"{TRAFFIC}.inputTokens": {"mean": 100, "p95": 50, "max": 200}},
        "spec.traffic.inputTokens",
        "mean must not be above p95",
    ),
    Bad(
        "traffic: p95 above maxRequested",
        {f"{TRAFFIC}.outputTokens": {"mean": 100, "p95": 500, "maxRequested": 200}},
        "spec.traffic.outputTokens",
        "nor p95 above maxRequested",
    ),
    Bad("objectives: unknown preference", {"spec.objectives.prefer": "Speed"}, "spec.objectives.prefer", "Throughput"),
    # --- scaling and groups
    Bad("scaling: max below min", {"spec.scaling": {"min": 3, "max": 2}}, "spec.scaling", "raise max or lower min"),
    Bad("scaling: unknown mode", {"spec.scaling.mode": "Hpa"}, "spec.scaling.mode", "Manual"),
    Bad(
        "groups: minAvailable above max",
        {"spec.replicaGroups.minAvailable": 7},
        "spec",
        "replicaGroups.minAvailable must not be above scaling.max",
    ),
    Bad(
        "recovery: back-off",
        {"spec.replicaGroups.recovery": {"initialBackoff": "20m"}},
        "spec.replicaGroups.recovery",
        "initialBackoff must not be above maxBackoff",
    ),
    Bad(
        "spread: not a label",
        {"spec.replicaGroups.spread.topologyKey": "topology/kubernetes/io"},
        "spec.replicaGroups.spread.topologyKey",
        "must be a label key",
    ),
    # --- placement
    Bad("placement: Fixed without fixed", {"spec.placement": {"mode": "Fixed"}}, "spec.placement", "mode Fixed needs"),
    Bad("placement: fixed in Auto", {"spec.placement.mode": "Auto"}, "spec.placement", "mode Auto forbids it"),
    Bad("placement: fixed without mode", {"spec.placement.mode": REMOVED}, "spec.placement", "mode Fixed needs"),
    Bad("placement: no allocations", {"spec.placement.fixed.allocations": []}, "spec.placement.fixed.allocations"),
    Bad(
        "placement: two allocations",
        {"spec.placement.fixed.allocations": [{"pool": "h100", "variant": "fp8"}, {"pool": "a100", "variant": "bf16"}]},
        "spec.placement.fixed.allocations",
    ),
    Bad("placement: unknown variant", {f"{FIXED}.variant": "fp4"}, "spec", "must name a variant of model.variants"),
    Bad("placement: pool not a name", {f"{FIXED}.pool": "H100!"}, bracketed(f"{FIXED}.pool"), "lower case letters"),
    Bad("placement: pool not listed", {"spec.placement.pools": ["a100-40"]}, "spec.placement", "add the pool"),
    Bad("placement: pool twice", {"spec.placement.pools": ["h100", "h100"]}, "spec.placement.pools"),
    Bad(
        "placement: 2048 GPUs per copy",
        {f"{FIXED}.tensorParallel": 64, f"{FIXED}.pipelineParallel": 32},
        "spec.placement.fixed.allocations[0]",
        "must be at most 256 GPUs",
    ),
    Bad(
        "placement: tokens below batch",
        {f"{FIXED}.maxBatchSize": 64, f"{FIXED}.maxNumTokens": 32},
        "spec.placement.fixed.allocations[0]",
        "maxNumTokens must not be below maxBatchSize",
    ),
    Bad(
        "placement: not the variant's layout",
        {f"{VARIANT}.tensorParallel": 4},
        "spec",
        "must be those of the variant",
    ),
    # --- update, disruption, engine
    Bad("update: no way", {"spec.update": {"surge": "Never"}}, "spec.update", "set maxUnavailable to 1 or more"),
    Bad("update: unknown surge", {"spec.update.surge": "Always"}, "spec.update.surge", "WhenCapacity"),
    Bad("disruption: unknown", {"spec.disruption.onCordon": "Panic"}, "spec.disruption.onCordon", "Migrate"),
    Bad("engine: unknown backend", {"spec.engine.backend": "vllm"}, "spec.engine.backend", "pytorch"),
    Bad(
        "engine: ssh without Secret",
        {"spec.engine.multiNode.launcher": "SSH"},
        "spec.engine.multiNode",
        "sshSecretName",
    ),
    Bad(
        "engine: Secret without ssh", {"spec.engine.multiNode.sshSecretName": "x"}, "spec.engine.multiNode", "remove it"
    ),
    *(
        Bad(f"image: {image!r}", {"spec.engine.image": image}, "spec.engine.image", "must be an image reference")
        for image in ("a b:1", "a:1\n", "https://example.com/a:1", "$(id):1", "a//b:1", "A/B:1", ":1", "a:1 -v /:/host")
    ),
    *(
        Bad(f"image: {image!r}", {"spec.engine.image": image}, "spec.engine.image", "a tag other than latest")
        for image in ("triton", "registry.example:5000/triton", "registry.example/triton:latest")
    ),
    Bad("image: empty", {"spec.engine.image": ""}, "spec.engine.image"),
    Bad("pause: unknown", {"spec.pause": "Forever"}, "spec.pause", "Changes"),
    # --- pod
    *environment(),
    *metadata(),
    *(
        Bad(
            f"resources: {name}",
            {"spec.pod.resources": {kind: {name: 1}}},
            f"spec.pod.resources.{kind}",
            "GPU resources",
        )
        for name in ("nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "amd.com/gpu", "example.com/gpu", "gpu.intel.com/i915")
        for kind in ("requests", "limits")
    ),
    *(
        Bad(f"resources: cpu {value!r}", {"spec.pod.resources.limits": {"cpu": value}}, "spec.pod.resources.limits")
        for value in (0, "0", -1, "-1", "1e3", "NaN", "", "12 ", "0.0", "1Zi", "9" * 40)
    ),
    Bad(
        "tolerations: nameless", {"spec.pod.tolerations": [{"operator": "Equal"}]}, "spec.pod.tolerations[0]", "Exists"
    ),
    Bad(
        "tolerations: value with Exists",
        {"spec.pod.tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "spec.pod.tolerations[0]",
        "takes no value",
    ),
    Bad(
        "tolerations: seconds without NoExecute",
        {"spec.pod.tolerations": [{"key": "a", "tolerationSeconds": 5}]},
        "spec.pod.tolerations[0]",
        "needs effect NoExecute",
    ),
    *(
        Bad(
            f"{where}: key {key!r}",
            {f"{at}tolerations": [{"key": key}]},
            f"{at}tolerations[0].key",
            "key of a taint",
            base,
        )
        for where, at, base in (("tolerations", "spec.pod.", BASE), ("pool", "spec.", POOL))
        for key in ("a b", "a/b/c", "/a", "a/", "-a", "a" * 64, "Example.com/a", "$(id)", "a\n")
    ),
    Bad(
        "tolerations: value",
        {"spec.pod.tolerations": [{"key": "a", "value": "not a value"}]},
        "spec.pod.tolerations[0].value",
        "label value",
    ),
    Bad(
        "scheduler: not a name", {"spec.pod.schedulerName": "My Scheduler"}, "spec.pod.schedulerName", "Kubernetes name"
    ),
    # --- numbers
    *numbers(),
    # --- types
    *(
        Bad(f"type: {path}", {path: value}, path)
        for path, value in {
            "spec": [],
            "spec.model": "llama",
            "spec.model.variants": {},
            "spec.traffic": 5,
            "spec.pod.env": {},
            "spec.pod.labels": [],
            "spec.scaling.min": "2",
            "spec.pause": 1,
        }.items()
    ),
    # --- GPUPool
    Bad("pool: name", {"metadata.name": "h.100"}, "metadata.name", "at most 63 lower case letters", POOL),
    *(
        Bad(f"pool: no {key}", {f"spec.{key}": REMOVED}, f"spec.{key}", base=POOL)
        for key in ("gpu", "nodeSelector", "resourceName", "gpusPerNode")
    ),
    Bad("pool: empty selector", {"spec.nodeSelector": {}}, "spec.nodeSelector", base=POOL),
    Bad("pool: selector key", {"spec.nodeSelector": {"a b": "c"}}, "spec.nodeSelector", "example.com/team", POOL),
    Bad("pool: selector value", {"spec.nodeSelector": {"a": "b c"}}, "spec.nodeSelector", "label value", POOL),
    Bad("pool: gpu", {"spec.gpu": "NVIDIA H100"}, "spec.gpu", "GPU type such as H100-SXM-80", POOL),
    Bad("pool: resource", {"spec.resourceName": "gpu"}, "spec.resourceName", "such as nvidia.com/gpu", POOL),
    *(
        Bad(f"pool: gpusPerNode {value}", {"spec.gpusPerNode": value}, "spec.gpusPerNode", base=POOL)
        for value in (0, -8, 65, 2**40)
    ),
    *(
        Bad(f"pool: price {value!r}", {"spec.pricePerGPUHour": value}, "spec.pricePerGPUHour", "more than 0", POOL)
        for value in (0, "0", "-2.99", "2,99", "NaN", "1000000", "2.99 USD")
    ),
    Bad("pool: currency", {"spec.currency": "usd"}, "spec.currency", "such as USD", POOL),
    Bad("pool: billing", {"spec.billing": "Spot"}, "spec.billing", "Reserved", POOL),
    Bad("pool: budget", {"spec.gpuBudget": 0}, "spec.gpuBudget", base=POOL),
    Bad("pool: MTBF", {"spec.nodeMTBFDays": 0}, "spec.nodeMTBFDays", base=POOL),
    Bad("pool: namespaces", {"spec.allowedNamespaces.names": ["a", "a"]}, "spec.allowedNamespaces.names", base=POOL),
    Bad("pool: link", {"spec.interconnect": "Carrier pigeon"}, "spec.interconnect", "NVLink", POOL),
    # --- ReplicaGroup
    Bad("group: name", {"spec.group": "group-1"}, "spec.group", base="ReplicaGroup"),
    Bad("group: leading zero", {"spec.group": "g01"}, "spec.group", "g0, g1", base="ReplicaGroup"),
    Bad("group: members", {"spec.members": 3}, "spec", "members must divide", base="ReplicaGroup"),
    Bad("group: nodes", {"spec.plannedNodes": ["a"]}, "spec", "one node per member", base="ReplicaGroup"),
    *(
        Bad(f"group: incarnation {value}", {"spec.incarnation": value}, "spec.incarnation", base="ReplicaGroup")
        for value in (0, -1, 10**9)
    ),
]
