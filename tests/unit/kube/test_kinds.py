from __future__ import annotations

import pytest

from berth.kube.kinds import LLM_DEPLOYMENT, NODE, POD, kind_of


def test_paths_follow_group_scope_and_subresource() -> None:
    assert POD.path() == "/api/v1/pods"
    assert POD.path("prod", "a", "eviction") == "/api/v1/namespaces/prod/pods/a/eviction"
    assert NODE.path(None, "n1") == "/api/v1/nodes/n1"
    assert LLM_DEPLOYMENT.path("prod") == "/apis/berth.dev/v1alpha1/namespaces/prod/llmdeployments"


def test_names_cannot_leave_their_place_in_the_path() -> None:
    assert POD.path("a/b", "../c?d") == "/api/v1/namespaces/a%2Fb/pods/..%2Fc%3Fd"


def test_scope_errors_are_found_before_a_request_is_sent() -> None:
    with pytest.raises(ValueError, match="Node is cluster-scoped"):
        NODE.path("prod", "n1")
    with pytest.raises(ValueError, match="Pod 'a' needs a namespace"):
        POD.path(None, "a")
    with pytest.raises(ValueError, match="Pod needs a name"):
        POD.path("prod", "")


def test_resources_are_named_as_in_rbac() -> None:
    assert POD.resource == "pods"
    assert LLM_DEPLOYMENT.resource == "llmdeployments.berth.dev"


def test_an_object_names_its_kind() -> None:
    assert kind_of({"apiVersion": "berth.dev/v1alpha1", "kind": "LLMDeployment"}) is LLM_DEPLOYMENT
    with pytest.raises(ValueError, match="unknown kind 'Secret' in apiVersion 'v1'"):
        kind_of({"apiVersion": "v1", "kind": "Secret"})
