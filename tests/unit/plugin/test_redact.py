"""Nothing that authorises leaves a cluster in a support bundle; what explains stays readable."""

from __future__ import annotations

import io
import json
import string
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.cli.kubectl import redact
from berth.cli.kubectl.bundle import archive

BODY = st.text(string.ascii_letters + string.digits, min_size=20, max_size=40)
SHAPED = st.one_of(
    BODY.map(lambda body: f"hf_{body}"),
    BODY.map(lambda body: f"nvapi-{body}"),
    BODY.map(lambda body: f"ghp_{body}"),
    st.tuples(BODY, BODY, BODY).map(lambda three: f"eyJ{three[0]}.{three[1]}.{three[2]}"),
)
"""Credentials that show by themselves what they are."""
AROUND = st.text(string.printable, max_size=40).map(lambda text: f"{text} "), st.text(string.printable, max_size=40)


@given(secret=SHAPED, before=AROUND[0], after=AROUND[1].map(lambda text: f" {text}"))
def test_a_credential_is_found_in_any_text(secret: str, before: str, after: str) -> None:
    assert secret not in redact.text(before + secret + after)


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer {}",
        "curl -H 'authorization: basic {}'",
        "HF_TOKEN={}",
        'json {{"api_key": "{}", "n": 1}}',
        "password: {}",
        "--client-secret={} --other",
        "https://user:{}@huggingface.co/x",
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n{}",
    ],
)
@given(secret=BODY)
def test_a_credential_is_known_by_what_stands_before_it(line: str, secret: str) -> None:
    assert secret not in redact.text(line.format(secret))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


@given(secret=st.uuids().map(str), rest=VALUES, deep=st.integers(0, 4))
def test_values_of_environment_variables_go_wherever_they_stand(secret: str, rest: Any, deep: int) -> None:
    variable = {"name": "X", "value": secret}
    given: Any = {"env": [variable, {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}]}
    for _ in range(deep):
        given = {"spec": [given, rest]}
    found = json.dumps(redact.manifest(given))
    assert secret not in found
    assert '"secretKeyRef": {"name": "hf"' in found


def test_what_explains_stays() -> None:
    given = {
        "metadata": {
            "name": "llama",
            "managedFields": [{"manager": "x"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": '{"env": "all again"}'},
        },
        "spec": {
            "source": {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B", "tokenSecretName": "hf"}},
            "imagePullSecrets": [{"name": "registry"}],
            "volumes": [{"secret": {"secretName": "mpi-keys"}}],
            "outputTokens": {"mean": 256},
            "env": [{"name": "REVISION", "value": "two"}],
            "password": "swordfish",
        },
        "status": {"message": "TPOT p95 24ms, objective 50ms; maxTokens: 1000000"},
    }
    assert redact.manifest(given) == {
        "metadata": {
            "name": "llama",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": redact.REDACTED},
        },
        "spec": {
            "source": {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B", "tokenSecretName": "hf"}},
            "imagePullSecrets": [{"name": "registry"}],
            "volumes": [{"secret": {"secretName": "mpi-keys"}}],
            "outputTokens": {"mean": 256},
            "env": [{"name": "REVISION", "value": redact.REDACTED}],
            "password": redact.REDACTED,
        },
        "status": {"message": "TPOT p95 24ms, objective 50ms; maxTokens: 1000000"},
    }


def test_an_archive_holds_one_folder_that_only_its_owner_may_read() -> None:
    data = archive("berth-llama", {"a.txt": "x", "logs/b.txt": "\ud800"}, 1.0)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(each.name, each.mode) for each in tar] == [
            ("berth-llama/a.txt", 0o600),
            ("berth-llama/logs/b.txt", 0o600),
        ]
