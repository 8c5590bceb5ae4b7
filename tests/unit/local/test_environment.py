"""Variables of a container come from literals, references and the pod itself, as Kubernetes defines it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from berth.local.kubelet.environment import container_environment, expand, expand_all
from berth.local.kubelet.objects import Missing, References
from tests.unit.local.kubelet_api import UID, FakeApi, pod

ADDRESSES = {"podIP": "127.9.1.2", "hostIP": "127.9.1.1"}
CONFIG = {"kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"level": "debug", "mode": "a"}}
SECRET = {"kind": "Secret", "metadata": {"name": "hf"}, "data": {"token": base64.b64encode(b"s3cret").decode()}}


async def environment(*variables: dict[str, Any], **container: Any) -> dict[str, str]:
    references = References(FakeApi(CONFIG, SECRET), "default")  # type: ignore[arg-type]
    return await container_environment({"env": variables, **container}, pod({}), ADDRESSES, references)


def reference(kind: str, name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": "V", "valueFrom": {kind: {"name": name, "key": key, **more}}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.uid", UID),
        ("metadata.labels['app']", "x"),
        ("metadata.labels['absent']", ""),
        ("spec.nodeName", "n1"),
        ("status.podIP", "127.9.1.2"),
        ("status.hostIP", "127.9.1.1"),
    ],
)
async def test_the_pods_own_fields(path: str, value: str) -> None:
    assert await environment({"name": "V", "valueFrom": {"fieldRef": {"fieldPath": path}}}) == {"V": value}


async def test_a_field_that_is_not_known_is_said() -> None:
    with pytest.raises(Missing, match=r"do not know the field spec\.x: use one of metadata\.name"):
        await environment({"name": "V", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}})


async def test_keys_of_config_maps_and_secrets() -> None:
    assert await environment(reference("configMapKeyRef", "conf", "level")) == {"V": "debug"}
    assert await environment(reference("secretKeyRef", "hf", "token")) == {"V": "s3cret"}


@pytest.mark.parametrize(
    ("kind", "name", "key", "message"),
    [
        ("secretKeyRef", "none", "token", 'secret "none" not found'),
        ("secretKeyRef", "hf", "none", "couldn't find key none in Secret default/hf"),
        ("configMapKeyRef", "none", "level", 'configmap "none" not found'),
    ],
)
async def test_what_is_missing_is_named_unless_it_is_optional(kind: str, name: str, key: str, message: str) -> None:
    with pytest.raises(Missing, match=message):
        await environment(reference(kind, name, key))
    assert await environment(reference(kind, name, key, optional=True)) == {}


async def test_all_keys_of_a_source_with_a_prefix_and_literals_win() -> None:
    sources = [{"prefix": "X_", "configMapRef": {"name": "conf"}}]
    found = await environment({"name": "X_mode", "value": "b"}, envFrom=sources)
    assert found == {"X_level": "debug", "X_mode": "b"}


async def test_variables_may_use_earlier_ones() -> None:
    found = await environment({"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(C)"})
    assert found["B"] == "1-$(C)"


@pytest.mark.parametrize(
    ("text", "expanded"), [("$(A)", "1"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("x$(A)y", "x1y")]
)
def test_references_in_words(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded
    assert expand_all([text], {"A": "1"}) == [expanded]
