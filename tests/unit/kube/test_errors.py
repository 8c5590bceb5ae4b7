from __future__ import annotations

import json
from typing import Any

import pytest

from berth.errors import Conflict, Transient
from berth.kube.errors import (
    MESSAGE_LIMIT,
    AlreadyExists,
    Expired,
    Forbidden,
    NotFound,
    Rejected,
    TooManyRequests,
    error_for,
)


def translate(
    status: int, reason: str = "", message: str = "why", headers: dict[str, str] | None = None, **more: Any
) -> Any:
    body = {"kind": "Status", "reason": reason, "message": message, "code": status, **more}
    return error_for(status, json.dumps(body).encode(), headers or {}, "create pods")


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (410, "Expired", Expired),
        (400, "BadRequest", Rejected),
        (405, "MethodNotAllowed", Rejected),
        (413, "RequestEntityTooLarge", Rejected),
        (422, "Invalid", Rejected),
        (401, "Unauthorized", Transient),
        (408, "Timeout", Transient),
        (429, "TooManyRequests", TooManyRequests),
        (500, "InternalError", Transient),
        (503, "ServiceUnavailable", Transient),
        (504, "Timeout", Transient),
    ],
)
def test_each_status_becomes_the_error_that_says_what_to_do(status: int, reason: str, expected: type) -> None:
    error = translate(status, reason)
    assert type(error) is expected
    assert "create pods" in str(error)
    assert "why" in str(error)


@pytest.mark.parametrize(
    "message",
    ["failed to create typed patch object (a/b; v1): .spec.x: field not declared", "failed to convert new object"],
)
def test_an_apply_that_does_not_fit_the_schema_is_permanent_although_it_is_a_500(message: str) -> None:
    assert type(translate(500, "", message)) is Rejected


def test_a_patch_with_the_uid_of_a_former_object_is_a_conflict_although_it_is_a_422() -> None:
    details = {"causes": [{"reason": "FieldValueInvalid", "field": "metadata.uid", "message": "field is immutable"}]}
    assert type(translate(422, "Invalid", details=details)) is Conflict


def test_missing_rbac_names_verb_and_resource() -> None:
    message = (
        'poddisruptionbudgets.policy is forbidden: User "system:serviceaccount:berth:berth" cannot create resource '
        '"poddisruptionbudgets" in API group "policy" in the namespace "prod"'
    )
    error = translate(403, "Forbidden", message)
    assert type(error) is Forbidden
    assert (error.verb, error.resource) == ("create", "poddisruptionbudgets")


@pytest.mark.parametrize(
    "message",
    [
        'pods "a" is forbidden: exceeded quota: gpus, requested: 8, used: 8, limited: 8',
        'pods "a" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
        'admission webhook "x.example.com" denied the request: no',
    ],
)
def test_policy_refusals_are_not_mistaken_for_rbac(message: str) -> None:
    error = translate(403, "Forbidden", message)
    assert type(error) is Rejected
    assert message in str(error)


def test_a_terminating_namespace_is_told_by_its_reason() -> None:
    error = translate(403, "Forbidden", "terminating", details={"causes": [{"reason": "NamespaceTerminating"}]})
    assert error.reason == "NamespaceTerminating"


def test_the_waiting_time_comes_from_the_header_or_the_body() -> None:
    assert translate(429, headers={"Retry-After": "7"}).retry_after == 7
    assert translate(503, details={"retryAfterSeconds": 3}).retry_after == 3
    assert translate(429).retry_after is None


@pytest.mark.parametrize("value", ["Fri, 31 Dec 1999 23:59:59 GMT", "-1", "0", "1e9", "nan", ""])
def test_a_senseless_waiting_time_counts_as_none(value: str) -> None:
    assert translate(429, headers={"Retry-After": value}).retry_after is None


@pytest.mark.parametrize("body", [b"", b"\xff\xfe gateway", b"[1]", b"null", b"<html>" + b"x" * 10_000])
def test_answers_that_are_not_a_status_object_are_quoted_in_short(body: bytes) -> None:
    error = error_for(502, body, {}, "get pods")
    assert type(error) is Transient
    assert len(str(error)) <= MESSAGE_LIMIT
    assert "\n" not in str(error)
