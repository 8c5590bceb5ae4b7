from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.render import demand, group_template
from berth.errors import InvalidSpec
from tests.unit.render import cases

BASE = cases.spec("pytorch", cases.CLAIM, 8, 2, pod=cases.EVERYTHING)


def changed(path: str, value: Any, base: cases.Manifest = BASE) -> cases.Manifest:
    """`base` with the field at `path` (dots; numbers index lists) set to `value`."""
    content = copy.deepcopy(base)
    *steps, last = path.split(".")
    place: Any = content
    for step in steps:
        place = place[int(step)] if isinstance(place, list) else place.setdefault(step, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return content


# --- which edits roll -------------------------------------------------------------------------------------------------
ROLLS = {
    "model.name": "llama-3.3-70b-instruct",
    "model.variants.0.source": {"persistentVolumeClaim": {"claimName": "models", "path": "other"}},
    "model.variants.0.kvPrecision": "bf16",
    "placement.fixed.allocations.0.tensorParallel": 4,
    "placement.fixed.allocations.0.maxBatchSize": 64,
    "placement.fixed.allocations.0.maxNumTokens": 4096,
    "engine.backend": "simulated",
    "engine.image": "registry.example/own:1",
    "engine.multiNode": cases.SSH,
    "pod.labels": {"team": "ads"},
    "pod.annotations": {},
    "pod.env": [],
    "pod.resources.requests.cpu": "13",
    "pod.tolerations": [],
    "pod.priorityClassName": "low",
    "pod.schedulerName": "volcano",
    "pod.imagePullSecrets": [],
    "pod.runtimeClassName": "other",
}
STAYS = {
    "traffic.requestsPerSecond": st.integers(1, 1000),
    "traffic.outputTokens.maxRequested": st.integers(500, 100_000),
    "traffic.inputTokens.max": st.integers(4083, 100_000),
    "traffic.peakToMean": st.sampled_from(["1", "2.5"]),
    "objectives.timeToFirstToken.p95": st.integers(1, 5000).map("{}ms".format),
    "objectives.timePerOutputToken.p95": st.integers(1, 5000).map("{}ms".format),
    "objectives.prefer": st.sampled_from(["Cost", "Latency", "Throughput"]),
    "objectives.limits": st.fixed_dictionaries({"gpus": st.integers(100, 1000)}),
    "scaling": st.fixed_dictionaries({"mode": st.sampled_from(["Auto", "Manual"]), "max": st.integers(1, 9)}),
    "replicas": st.integers(1, 1000),
    "replicaGroups.drainTimeout": st.integers(1, 1000).map("{}s".format),
    "replicaGroups.recovery.maxFailures": st.integers(1, 100),
    "replicaGroups.spread.whenUnsatisfiable": st.sampled_from(["Prefer", "Require"]),
    "placement.fixed.allocations.0.groups": st.integers(1, 1000),
    "placement.moves.cooldown": st.integers(1, 100).map("{}h".format),
    "update.deadline": st.integers(1, 60).map("{}m".format),
    "disruption.onCordon": st.sampled_from(["Migrate", "Ignore"]),
    "pause": st.sampled_from(["None", "Changes", "All"]),
    "engine.multiNode.launcher": st.just("Ray"),
    "model.variants.0.backend": st.just(None),
}


def template_hash(content: cases.Manifest) -> str:
    return cases.template(content).template_hash


@pytest.mark.parametrize("path", ROLLS)
def test_pods_are_replaced_when_what_they_run_changes(path: str) -> None:
    assert template_hash(changed(path, ROLLS[path])) != template_hash(BASE)


@given(st.data())
def test_pods_stay_when_traffic_objectives_scaling_or_policies_change(data: st.DataObject) -> None:
    content = BASE
    for path in data.draw(st.lists(st.sampled_from(sorted(STAYS)), min_size=1, max_size=4, unique=True)):
        content = changed(path, data.draw(STAYS[path], label=path), content)
    assert template_hash(content) == template_hash(BASE)


words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)


@given(st.dictionaries(words, words), st.dictionaries(words, words), st.integers(1, 10**6))
def test_pods_stay_when_metadata_is_edited(
    labels: dict[str, str], annotations: dict[str, str], generation: int
) -> None:
    found = cases.deployment(BASE, labels=labels, annotations=annotations, generation=generation)
    made = group_template(found, found.spec.fixed_allocations[0], cases.pool(), cases.IMAGE, cases.ENGINE_FILES)
    assert made.template_hash == template_hash(BASE)


def test_pods_stay_when_the_operator_brings_another_image_or_engine_library() -> None:
    found = cases.deployment(BASE)
    files = {path: text + "# next release\n" for path, text in cases.ENGINE_FILES.items()}
    made = group_template(found, found.spec.fixed_allocations[0], cases.pool(), "registry.example/next:1", files)
    assert made.template_hash == template_hash(BASE)
    assert made.config_map_name != cases.template(BASE).config_map_name


def test_pods_stay_when_the_pools_nodes_price_or_taints_change() -> None:
    for change in ({"pricePerGPUHour": "9"}, {"nodeSelector": {"a": "b"}}, {"tolerations": [{"operator": "Exists"}]}):
        assert cases.template(BASE, **change).template_hash == template_hash(BASE)


def test_pods_stay_when_another_variant_is_added() -> None:
    other = {"name": "bf16", "precision": "bf16", "source": cases.CLAIM}
    assert template_hash(changed("model.variants", [*BASE["model"]["variants"], other])) == template_hash(BASE)


def test_pods_stay_when_a_default_or_an_equal_quantity_is_written_down() -> None:
    for path, value in (
        ("engine.multiNode.launcher", "Ray"),
        ("pod.tolerations.0.operator", "Equal"),
        ("pod.resources.requests.cpu", 12),
        ("pod.resources.requests.cpu", "12000m"),
    ):
        assert template_hash(changed(path, value)) == template_hash(BASE), path


def test_a_launcher_that_one_pod_does_not_need_replaces_nothing() -> None:
    one_pod = cases.spec("pytorch", cases.CLAIM, 8)
    assert template_hash(changed("engine.multiNode", cases.SSH, one_pod)) == template_hash(one_pod)


def test_the_hash_is_the_one_that_earlier_releases_computed() -> None:
    """A new figure here means that every fleet rolls when its operator is upgraded."""
    assert template_hash(cases.CASES["pytorch-claim"]) == "181b546576"
    assert template_hash(cases.CASES["pytorch-everything"]) == "f2cc693f69"


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            cases.spec("pytorch", cases.CLAIM, 16),
            "tensorParallel 16 does not fit a node of pool h100 .8 GPUs.: use at most 8",
        ),
        (
            changed("engine.backend", "tensorrt", cases.spec("pytorch", cases.CLAIM, 2)),
            "variant fp8 names none: give gpus and tensorParallel",
        ),
        (cases.spec("tensorrt", cases.HUB, 2), "live on a volume: give source.persistentVolumeClaim"),
        (cases.spec("tensorrt", cases.CLAIM, 8, 2), "launcher: Ray cannot run built engines over 2 nodes: use SSH"),
        (
            cases.spec(
                "pytorch", cases.CLAIM, pod={"resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}}
            ),
            "request 2Gi of memory must not be above its limit 1Gi",
        ),
        (
            cases.spec(
                "pytorch", cases.CLAIM, pod={"resources": {"limits": {"rdma/hca": 1}, "requests": {"rdma/hca": 2}}}
            ),
            "request 2 of rdma/hca must equal its limit 1",
        ),
        (
            cases.spec("pytorch", cases.CLAIM, pod={"resources": {"requests": {"rdma/hca": "500m"}}}),
            "must be a whole number",
        ),
        (
            cases.spec("pytorch", cases.CLAIM, pod={"resources": {"requests": {"disk": 1}}}),
            "disk is no resource: use cpu",
        ),
        (cases.spec("pytorch", cases.CLAIM, pod={"resources": {"requests": {"memory": "1m"}}}), "too small: raise it"),
    ],
)
def test_what_no_pods_can_be_made_of_is_refused_with_field_bound_and_remedy(
    content: cases.Manifest, words: str
) -> None:
    with pytest.raises(InvalidSpec, match=words):
        cases.template(content)


def test_a_pools_own_gpu_resource_cannot_be_asked_for() -> None:
    content = cases.spec("pytorch", cases.CLAIM, pod={"resources": {"limits": {"example.com/accelerator": 1}}})
    with pytest.raises(InvalidSpec, match="the placement decides"):
        cases.template(content, resourceName="example.com/accelerator")


# --- demand -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", cases.CASES)
def test_a_group_asks_its_pool_for_exactly_what_its_pods_request(name: str) -> None:
    made = cases.template(cases.CASES[name])
    asked, pods = demand(made), cases.pods(made)
    assert asked.members == len(pods)
    for pod in pods:
        requests = pod["spec"]["containers"][0]["resources"]["requests"]
        assert str(asked.gpus_per_member) == requests["nvidia.com/gpu"]
        assert asked.node_selector == pod["spec"]["nodeSelector"]
        assert len(asked.tolerations) == len(pod["spec"]["tolerations"])


def test_demand_is_in_millicores_and_bytes() -> None:
    asked = demand(
        cases.template(cases.spec("pytorch", cases.CLAIM, 2, pod={"resources": {"requests": {"cpu": "1500m"}}}))
    )
    assert (asked.cpu_millicores, asked.memory_bytes) == (1500, 64 * 2**30)
