"""Reading objects: what is refused and in which words, what is tolerated, and that nothing else ever happens."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.api.common import parse
from berth.api.crd import RESOURCES, Resource
from berth.api.gpupool import parse_gpupool
from berth.api.llmdeployment import LLMDeployment, parse_llmdeployment
from berth.api.replicagroup import parse_replicagroup
from berth.errors import InvalidSpec
from berth.estimator.models import model as catalogue_model
from tests.support.api_objects import base_of, valid_objects
from tests.support.bad_objects import BAD_OBJECTS
from tests.support.bad_values import Bad
from tests.support.samples import BASES, REMOVED, REPLICA_GROUP, Manifest, edit

LLAMA = BASES["fixed-placement/LLMDeployment/llama-70b"]
MODELS = {resource.kind: resource.model for resource in RESOURCES}
DEPLOYMENTS, GROUPS, POOLS = RESOURCES
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize("bad", BAD_OBJECTS, ids=lambda bad: bad.name)
def test_bad_object_is_refused_with_field_bound_and_remedy(bad: Bad) -> None:
    manifest = bad.manifest
    with pytest.raises(InvalidSpec) as error:
        parse(MODELS[manifest["kind"]], manifest, known_fields_only=True)
    assert bad.field in str(error.value)
    assert bad.words in str(error.value)


@pytest.mark.parametrize("name", BASES)
def test_sample_is_accepted_and_comes_back_unchanged(name: str) -> None:
    manifest = BASES[name]
    assert parse(MODELS[manifest["kind"]], manifest, known_fields_only=True).to_dict() == manifest


@pytest.mark.parametrize("name", [name for name, manifest in BASES.items() if manifest["kind"] == "LLMDeployment"])
def test_sample_names_a_model_of_the_catalogue_or_describes_it(name: str) -> None:
    model = parse_llmdeployment(BASES[name]).spec.model
    assert model.architecture is not None or catalogue_model(model.name).name


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_valid_objects_survive_the_round_trip(resource: Resource) -> None:
    @given(valid_objects(resource))
    def check(manifest: Manifest) -> None:
        read = parse(resource.model, manifest, known_fields_only=True)
        assert read.to_dict() == manifest
        assert parse(resource.model, read.to_dict()) == read

    check()


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_arbitrary_json_is_read_or_refused_but_never_crashes(resource: Resource) -> None:
    @given(ANY_JSON)
    def check(anything: Any) -> None:
        with pytest.raises(InvalidSpec):
            parse(resource.model, anything)

    check()


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_objects_with_anything_anywhere_are_read_or_refused(resource: Resource) -> None:
    paths = list(_paths(base_of(resource), ()))

    @given(st.sampled_from(paths), ANY_JSON)
    def check(path: tuple[str, ...], anything: Any) -> None:
        with suppress(InvalidSpec):
            parse(resource.model, edit(base_of(resource), {".".join(path): anything}))

    check()


def _paths(node: Any, path: tuple[str, ...]) -> Any:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        if "." not in str(name):
            yield (*path, str(name))
            yield from _paths(child, (*path, str(name)))


def test_fields_of_a_newer_release_are_ignored_in_stored_objects() -> None:
    newer = edit(LLAMA, {"spec.zeroGravity": True, "spec.scaling.toZero": {"after": "1h"}, "status.mood": "good"})
    assert parse_llmdeployment(newer).spec == parse_llmdeployment(LLAMA).spec


def test_unknown_fields_of_a_file_are_named() -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.scaling\.maximum: unknown field: correct or remove it"):
        parse_llmdeployment(edit(LLAMA, {"spec.scaling.maximum": 3}), known_fields_only=True)


def test_word_of_a_newer_release_in_spec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSpec) as error:
        parse_llmdeployment(edit(LLAMA, {"spec.model.variants.1.precision": "fp4"}))
    assert str(error.value) == (
        "spec.model.variants[1].precision: unsupported value: use 'fp16', 'bf16', 'fp8', 'int8', 'int4-awq' or "
        "'int4-gptq' (or a Berth release that knows it)"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("status.conditions", [{"type": "Ready"}]),
        ("status.resolved", {"backend": "quantum"}),
        ("status.placement", {"allocations": [{"pool": "h100", "variant": "x", "precision": "fp2"}]}),
        ("status.groups", "none"),
        ("status.moves", {"recent": [{}] * 99}),
    ],
)
def test_unreadable_status_field_counts_as_absent(path: str, value: Any) -> None:
    stored = edit(LLAMA, {path: value, "status.observedGeneration": 7, "status.url": "http://llama-70b.serving:8000"})
    status = parse_llmdeployment(stored).status
    assert status == LLMDeployment.model_validate(edit(stored, {path: REMOVED})).status
    assert status.observed_generation == 7


def test_status_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="status"):
        parse_llmdeployment({**LLAMA, "status": "fine"})


def test_full_status_survives_the_round_trip() -> None:
    allocation = {"pool": "h100", "variant": "fp8", "tensorParallel": 2, "groups": 2, "precision": "fp8"}
    figures = {"ttftP95": "412ms", "tpotP95": "24ms", "outputTokensPerSecond": {"low": "900", "mid": "1100"}}
    status = {
        "observedGeneration": 3,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "observedGeneration": 3,
                "lastTransitionTime": "2026-11-24T12:00:00Z",
                "reason": "AllGroupsServe",
                "message": "",
            }
        ],
        "replicas": 2,
        "readyReplicas": 2,
        "selector": "berth.dev/member=leader",
        "summary": {
            "ready": "2/2",
            "placement": "h100 fp8 tp2",
            "ttftP95": "412ms",
            "tpotP95": "-",
            "message": "Ready",
        },
        "url": "http://llama-70b.serving:8000",
        "needed": 1,
        "resolved": {"image": "registry.example/triton:26.07", "backend": "pytorch", "maxBatchSize": 64},
        "placement": {"allocations": [allocation], "predicted": figures, "measured": figures, "costPerHour": "11.96"},
        "candidates": [{"allocations": [allocation], "chosen": True, "predicted": figures}, {"rejected": "too slow"}],
        "groupCounts": {"Serving": 2},
        "groups": [{"name": "g0", "pool": "h100", "nodes": ["n1"], "state": "Serving", "incarnation": 1}],
        "moves": {
            "current": {"id": "m1", "phase": "Starting", "from": [allocation], "to": [allocation]},
            "recent": [{"id": "m0", "result": "Completed"}],
            "nextAllowedAt": "2026-11-24T18:00:00Z",
        },
        "lastFailover": {"group": "g1", "reason": "GPUFault", "detectedAfter": "4.1s"},
        "availability": {"predicted": "0.99991", "target": "0.9995", "loadAfterGroupLoss": "0.61"},
        "calibration": [{"scope": "pool h100", "metric": "tpot", "factor": "1.07", "samples": 318}],
    }
    stored = {**LLAMA, "status": status}
    assert parse_llmdeployment(stored, known_fields_only=True).to_dict() == stored


def test_absent_fields_behave_as_their_documented_defaults() -> None:
    spec = parse_llmdeployment(LLAMA).spec
    assert spec.replicas == 1
    assert spec.pause == "None"
    assert spec.update.surge == "WhenCapacity"
    assert spec.replica_groups.recovery.window == "1h"
    assert spec.placement.moves.mode == "Auto"
    assert spec.disruption.on_cordon == "Migrate"
    assert spec.model.variants[1].effective_kv_precision == "bf16"
    assert parse_gpupool(BASES["pools/GPUPool/h100"]).spec.allowed_namespaces.names == ()


def test_settings_of_the_simulated_engine_may_be_given_as_environment() -> None:
    env = [{"name": "BERTH_SIMULATED", "value": '{"load_seconds": 3}'}]
    assert parse_llmdeployment(edit(LLAMA, {"spec.pod.env": env})).spec.pod.env[0].name == "BERTH_SIMULATED"


def test_models_are_frozen() -> None:
    group = parse_replicagroup(REPLICA_GROUP)
    with pytest.raises(ValueError, match="frozen"):
        group.spec.members = 3  # type: ignore[misc]
    assert group.spec.gpus_per_member == 8


def test_at_most_five_errors_are_listed() -> None:
    env = [{"name": f"{index} bad"} for index in range(9)]
    with pytest.raises(InvalidSpec, match=r"spec\.pod\.env\[4\]\.name: .*; and 4 more$"):
        parse_llmdeployment(edit(LLAMA, {"spec.pod.env": env}))
