"""Objects that a pod refers to: ConfigMaps and Secrets, read when it starts, as text or bytes by key."""

from __future__ import annotations

import base64
from typing import Final

from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import CONFIG_MAP, Kind

SECRET: Final = Kind("", "v1", "Secret", "secrets")
"""Kept out of `berth.kube.kinds`: the operator never reads Secrets, kubelets do."""


class Missing(Exception):
    """What a pod refers to is not there; the message is the one that kubelets give."""


class References:
    """Reads for the pods of one namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def config_map(self, name: str, *, optional: bool = False) -> dict[str, bytes]:
        """Raises Missing unless `optional`."""
        found = await self._read(CONFIG_MAP, name, optional)
        data = {key: text.encode() for key, text in (found.get("data") or {}).items()}
        return data | {key: base64.b64decode(text) for key, text in (found.get("binaryData") or {}).items()}

    async def secret(self, name: str, *, optional: bool = False) -> dict[str, bytes]:
        """Raises Missing unless `optional`."""
        found = await self._read(SECRET, name, optional)
        return {key: base64.b64decode(text) for key, text in (found.get("data") or {}).items()}

    async def _read(self, kind: Kind, name: str, optional: bool) -> dict[str, dict[str, str]]:
        try:
            return await self._client.get(kind, self._namespace, name)
        except NotFound:
            if optional:
                return {}
            raise Missing(f'{kind.name.lower()} "{name}" not found') from None
