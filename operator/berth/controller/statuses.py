"""Writes of status that CRDs of an earlier release can take: what they do not declare is left out, and said once.

Between the upgrade of an operator and that of its CRDs, or after CRDs were rolled back, a status without its newest
fields is worth more than none. What somebody else wrote into a status beside Berth, which server-side apply leaves
alone, is taken away: there is one writer, and a move that nobody makes must not be told of.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from berth import labels
from berth.kube.client import KubeClient
from berth.kube.errors import Rejected
from berth.kube.kinds import GPU_POOL, LLM_DEPLOYMENT, REPLICA_GROUP, Object

_log = logging.getLogger(__name__)
_KINDS: Final = {kind.name: kind for kind in (LLM_DEPLOYMENT, REPLICA_GROUP, GPU_POOL)}
_UNDECLARED: Final = re.compile(r"\.status\.(\w+)\S*: field not declared in schema")


class StatusWriter:
    """Applies status; remembers what the CRDs lack until the process ends."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._undeclared: defaultdict[str, set[str]] = defaultdict(set)

    def takes(self, kind: str, status: Mapping[str, Any]) -> dict[str, Any]:
        """What of `status` is written for objects of this kind."""
        return {name: value for name, value in status.items() if name not in self._undeclared[kind]}

    async def write(self, body: Object) -> Object:
        """Apply `body["status"]`, give the answer; raises what the client raises for any other reason."""
        answer = await self._applied(body)
        foreign = surplus(body["status"], answer.get("status") or {})
        if not foreign:
            return answer
        kind, metadata = _KINDS[body["kind"]], body["metadata"]
        patch = {"status": foreign}
        return await self._client.merge_patch(
            kind,
            metadata.get("namespace"),
            metadata["name"],
            patch,
            subresource="status",
            uid=metadata["uid"],
            manager=labels.MANAGER_STATUS,
        )

    async def _applied(self, body: Object) -> Object:
        kind = body["kind"]
        while True:
            status = self.takes(kind, body["status"])
            try:
                return await self._client.apply({**body, "status": status}, labels.MANAGER_STATUS, subresource="status")
            except Rejected as error:
                found = _UNDECLARED.search(str(error))
                if found is None or found[1] not in status:
                    raise
                self._undeclared[kind].add(found[1])
                _log.warning(
                    "the CRD of %s does not know status.%s: upgrade the CRDs with the operator", kind, found[1]
                )


def surplus(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that takes out of `found` the fields that `wanted` lacks; lists are the server's business."""
    patch: dict[str, Any] = {}
    for name, value in found.items():
        if name not in wanted:
            patch[name] = None
        elif isinstance(value, Mapping) and isinstance(wanted[name], Mapping):
            inner = surplus(wanted[name], value)
            if inner:
                patch[name] = inner
    return patch
