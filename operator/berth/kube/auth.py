"""How the operator proves who it is to the API server.

In a cluster by the pod's service account alone; its token file is read again every minute, because it is rotated. A
kubeconfig is for development: exec and auth-provider plugins, which run commands, and switched-off TLS verification are
refused. The command line is a person's own program: there a kubeconfig means what it means to kubectl.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import (
    ConfigException,
    list_kube_config_contexts,
    load_incluster_config,
    load_kube_config,
)

from berth.settings import InvalidSettings

_PLUGINS = ("exec", "auth-provider")
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


async def configuration(kubeconfig: str = "", context: str = "", *, plugins: bool = False) -> Configuration:
    """What an `ApiClient` needs; raises `InvalidSettings` with the remedy when there is nothing usable.

    With `plugins` the kubeconfig may be a list of files, and may say anything that kubectl does.
    """
    # The client's own limits bound the number of requests; watches must never wait for a connection of the pool.
    result = Configuration(connection_pool_maxsize=0)
    try:
        if kubeconfig:
            if not plugins:
                _refuse_unsafe(Path(kubeconfig), context)
            else:
                _require_a_file(kubeconfig)
            await _load(kubeconfig, context, result)
        else:
            load_incluster_config(client_configuration=result)
    except (ConfigException, OSError, ValueError) as error:
        named = "give --kubeconfig and --context" if plugins else "check the path and the context"
        remedy = named if kubeconfig else "outside of a pod set BERTH_KUBECONFIG"
        raise InvalidSettings(f"no access to a cluster: {error}; {remedy}") from error
    return result


async def _load(kubeconfig: str, context: str, result: Configuration) -> None:
    try:
        await load_kube_config(kubeconfig, context=context or None, client_configuration=result, persist_config=False)
    except (TypeError, AttributeError, LookupError, RecursionError, yaml.YAMLError):  # it believes what it reads
        raise ConfigException(f"{kubeconfig} is not a kubeconfig") from None


def _require_a_file(kubeconfig: str) -> None:
    """Of a list of files those that are absent are passed over, but one there must be."""
    if not any(Path(each).expanduser().exists() for each in kubeconfig.split(os.pathsep)):
        raise ConfigException(f"there is no kubeconfig {kubeconfig}")


def namespace(kubeconfig: str, context: str = "") -> str:
    """The namespace of the context, empty if it names none; in a pod, that of the pod."""
    if not kubeconfig:
        return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.exists() else ""
    contexts, current = list_kube_config_contexts(kubeconfig)
    chosen = next((each for each in contexts if each["name"] == context), current)
    return str((chosen.get("context") or {}).get("namespace") or "")


def _refuse_unsafe(path: Path, context: str) -> None:
    try:
        document = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ConfigException(f"{path} is not a kubeconfig")
    chosen = _named(document, "contexts", "context", context or document.get("current-context"))
    user = _named(document, "users", "user", chosen.get("user"))
    cluster = _named(document, "clusters", "cluster", chosen.get("cluster"))
    if any(plugin in user for plugin in _PLUGINS):
        raise InvalidSettings(
            f"{path}: user {chosen.get('user')!r} needs a plugin that runs commands; "
            "use a token (kubectl create token) or a client certificate"
        )
    if cluster.get("insecure-skip-tls-verify"):
        raise InvalidSettings(f"{path}: cluster {chosen.get('cluster')!r} skips TLS verification; name its CA instead")


def _named(document: dict[str, Any], section: str, entry: str, name: object) -> dict[str, Any]:
    entries = document.get(section)
    for each in entries if isinstance(entries, list) else ():
        match each:
            case {"name": str(found)} if found == name and isinstance(each.get(entry), dict):
                return dict(each[entry])
    raise ConfigException(f"no {entry} {name!r} in {section}")
