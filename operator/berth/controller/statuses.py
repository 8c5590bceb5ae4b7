"""Writes of status that CRDs of an earlier release can take: what they do not declare is left out, and said once.

Between the upgrade of an operator and that of its CRDs, or after CRDs were rolled back, a status without its newest
fields is worth more than none.
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
from berth.kube.kinds import Object

_log = logging.getLogger(__name__)
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
