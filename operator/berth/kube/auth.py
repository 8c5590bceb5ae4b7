"""How the operator proves who it is to the API server.

In a cluster by the pod's service account alone; its token file is read again every minute, because it is rotated. A
kubeconfig is for development: exec and auth-provider plugins, which run commands, and switched-off TLS verification are
refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from berth.settings import InvalidSettings

_PLUGINS = ("exec", "auth-provider")


async def configuration(kubeconfig: str = "", context: str = "") -> Configuration:
    """What an `ApiClient` needs; raises `InvalidSettings` with the remedy when there is nothing usable."""
    # The client's own limits bound the number of requests; watches must never wait for a connection of the pool.
    result = Configuration(connection_pool_maxsize=0)
    try:
        if kubeconfig:
            _refuse_unsafe(Path(kubeconfig), context)
            await load_kube_config(
                kubeconfig, context=context or None, client_configuration=result, persist_config=False
            )
        else:
            load_incluster_config(client_configuration=result)
    except (ConfigException, OSError, ValueError, yaml.YAMLError) as error:
        remedy = "check the path and the context" if kubeconfig else "outside of a pod set BERTH_KUBECONFIG"
        raise InvalidSettings(f"no access to a cluster: {error}; {remedy}") from error
    return result


def _refuse_unsafe(path: Path, context: str) -> None:
    document = yaml.safe_load(path.read_text())
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
