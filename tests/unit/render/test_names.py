from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth import labels
from berth.api.placement import MAX_GROUPS, Allocation
from berth.core.render import DeploymentRef, names, placement_hash
from tests.unit.render import cases

LABEL = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")

deployment_names = st.from_regex(f"[a-z]([-a-z0-9]{{0,{labels.MAX_DEPLOYMENT_NAME - 2}}}[a-z0-9])?", fullmatch=True)


@given(deployment_names, st.uuids(), st.integers(0, MAX_GROUPS), st.integers(1, 1_000_000), st.integers(0, 63))
def test_every_name_of_an_admitted_deployment_is_a_dns_label(name, uid, group, incarnation, member) -> None:
    reference = DeploymentRef(name, "serving", str(uid))
    replica_group = names.replica_group_name(reference, group, incarnation)
    made = [
        names.service_name(reference),
        names.headless_service_name(reference),
        names.disruption_budget_name(reference),
        names.config_map_name(reference, {"a": "b"}),
        replica_group,
        names.pod_name(replica_group, member),
        *names.member_host(replica_group, member).split("."),
    ]
    assert [text for text in made if not LABEL.fullmatch(text) or len(text) > 63] == []


def test_a_deployment_made_again_under_its_old_name_gets_other_group_names() -> None:
    first, second = (DeploymentRef("llama-70b", "serving", uid) for uid in ("uid-1", "uid-2"))
    assert names.replica_group_name(first, 0, 1) != names.replica_group_name(second, 0, 1)


def test_groups_and_incarnations_have_names_of_their_own() -> None:
    reference = DeploymentRef("llama-70b", "serving", "uid-1")
    made = {names.replica_group_name(reference, group, incarnation) for group in range(12) for incarnation in range(12)}
    assert len(made) == 144


def test_a_config_map_is_named_by_its_content() -> None:
    reference = DeploymentRef("llama-70b", "serving", "uid-1")
    assert names.config_map_name(reference, {"a": "1", "b": "2"}) == names.config_map_name(
        reference, {"b": "2", "a": "1"}
    )
    assert names.config_map_name(reference, {"a": "1"}) != names.config_map_name(reference, {"a": "2"})


def test_the_placement_hash_ignores_the_number_of_groups_and_nothing_else() -> None:
    base = {"pool": "h100", "variant": "fp8", "tensorParallel": 2, "maxBatchSize": 64}
    allocation = Allocation.model_validate(base | {"groups": 2})
    assert placement_hash(allocation) == placement_hash(Allocation.model_validate(base | {"groups": 3}))
    for change in (
        {"pool": "a100"},
        {"variant": "bf16"},
        {"tensorParallel": 4},
        {"pipelineParallel": 2},
        {"maxBatchSize": 8},
    ):
        assert placement_hash(Allocation.model_validate(base | change)) != placement_hash(allocation), change


@pytest.mark.parametrize("name", cases.CASES)
def test_a_group_of_each_case_is_stored_under_names_that_tell_its_incarnation(name: str) -> None:
    made = cases.template(cases.CASES[name])
    replica_group = cases.group(made)
    assert replica_group["metadata"]["name"].endswith("-g0-7")
    assert [pod["metadata"]["name"] for pod in cases.pods(made)] == [
        f"{replica_group['metadata']['name']}-{member}" for member in range(made.members)
    ]
