from __future__ import annotations

import datetime
import json
import os
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.config import incluster_config

from berth.kube.auth import configuration, namespace
from berth.settings import InvalidSettings

CREDENTIAL = json.dumps(
    {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "made-for-you"},
    }
)
"""What a plugin prints."""


def write(folder: Path, user: dict[str, Any], cluster: dict[str, Any] | None = None) -> str:
    path = folder / "kubeconfig"
    document = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", **(cluster or {})}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


async def test_a_kubeconfig_with_a_token_is_enough(tmp_path: Path) -> None:
    config = await configuration(write(tmp_path, {"token": "secret"}))
    assert config.host == "https://127.0.0.1:1"
    assert await config.get_api_key_with_prefix("BearerToken") == "Bearer secret"
    assert config.verify_ssl


def test_the_namespace_is_that_of_the_context_in_one_file_or_several(tmp_path: Path) -> None:
    first = write(tmp_path, {"token": "x"})
    second = tmp_path / "second"
    there = {"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "models"}}
    second.write_text(yaml.safe_dump({"current-context": "there", "contexts": [there], "clusters": [], "users": []}))
    assert namespace(first) == ""
    both = os.pathsep.join([first, str(tmp_path / "absent"), str(second)])
    assert namespace(both) == "models"
    assert namespace(both, "here") == ""
    assert namespace(both, "there") == "models"


async def test_a_person_may_have_plugins_and_several_files(tmp_path: Path) -> None:
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": "echo", "args": [CREDENTIAL]}
    path = os.pathsep.join(
        [str(tmp_path / "absent"), write(tmp_path, {"exec": {**command, "interactiveMode": "Never"}})]
    )
    config = await configuration(path, plugins=True)
    assert await config.get_api_key_with_prefix("BearerToken", alias="authorization") == "Bearer made-for-you"


@pytest.mark.parametrize("plugin", ["exec", "auth-provider"])
async def test_plugins_that_run_commands_are_refused_and_not_run(tmp_path: Path, plugin: str) -> None:
    marker = tmp_path / "ran"
    user = {plugin: {"apiVersion": "client.authentication.k8s.io/v1", "command": "touch", "args": [str(marker)]}}
    with pytest.raises(InvalidSettings, match="user 'u' needs a plugin that runs commands; use a token"):
        await configuration(write(tmp_path, user))
    assert not marker.exists()


async def test_switched_off_verification_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"token": "x"}, {"insecure-skip-tls-verify": True})
    with pytest.raises(InvalidSettings, match="skips TLS verification"):
        await configuration(path)


async def test_an_unknown_context_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="no context 'there' in contexts; check the path and the context"):
        await configuration(write(tmp_path, {"token": "x"}), "there")


@pytest.mark.parametrize("plugins", [False, True])
@pytest.mark.parametrize("text", ["", "[]", "a: [", "contexts: 3", "contexts: [3]", "\0", "[" * 999])
async def test_a_file_that_is_no_kubeconfig_is_said_in_one_line(tmp_path: Path, text: str, plugins: bool) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(InvalidSettings, match="no access to a cluster") as refused:
        await configuration(str(path), plugins=plugins)
    assert "\n" not in str(refused.value)


async def test_a_missing_file_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="nowhere"):
        await configuration(str(tmp_path / "nowhere"))


async def test_outside_of_a_pod_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidSettings, match="outside of a pod set BERTH_KUBECONFIG"):
        await configuration()


async def test_a_rotated_service_account_token_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first")
    authority.write_text("a certificate")
    now = datetime.datetime(2026, 1, 1)
    clock = types.SimpleNamespace(now=lambda: now)
    monkeypatch.setattr(
        incluster_config, "datetime", types.SimpleNamespace(datetime=clock, timedelta=datetime.timedelta)
    )
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setitem(incluster_config.os.environ, "KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setitem(incluster_config.os.environ, "KUBERNETES_SERVICE_PORT", "443")
    config = await configuration()
    assert config.host == "https://[fd00::1]:443"
    assert await config.get_api_key_with_prefix("BearerToken") == "bearer first"
    token.write_text("second")
    assert await config.get_api_key_with_prefix("BearerToken") == "bearer first"
    now += datetime.timedelta(minutes=1)
    assert await config.get_api_key_with_prefix("BearerToken") == "bearer second"
