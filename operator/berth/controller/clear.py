"""All of Berth's is deleted while its kinds are still there, because the garbage collector has to see owners go.

When a CustomResourceDefinition is deleted, its objects vanish and its watches end at once; pods whose owners went that
way may stay for ever. So this comes first where the CRDs are to go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from berth.errors import Conflict, Transient
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import (
    CONFIG_MAP,
    LLM_DEPLOYMENT,
    POD,
    POD_DISRUPTION_BUDGET,
    REPLICA_GROUP,
    SERVICE,
    Kind,
    Object,
)
from berth.labels import MANAGED_BY, MANAGED_BY_VALUE

LOOK_SECONDS: Final = 1.0
"""Between two looks at what is left."""
PAGE: Final = 100
"""Objects of one answer."""
NAMED: Final = 3
"""So many of what is left are named."""
_OWNED: Final = (REPLICA_GROUP, SERVICE, CONFIG_MAP, POD_DISRUPTION_BUDGET, POD)


async def clear(client: KubeClient, tell: Callable[[str], None]) -> None:
    """Delete every LLMDeployment; return once nothing is left, in any namespace, of what was made for them.

    It takes as long as it takes: a pod on a node that is silent goes when the node comes back or is deleted.
    """
    told = ""
    while (words := await _left(client)) != "":
        if words != told:
            tell(words)
            told = words
        await asyncio.sleep(LOOK_SECONDS)


async def _left(client: KubeClient) -> str:
    """What is still there in words, empty for nothing; whatever was not on its way out is sent there."""
    try:
        deployments = await _listed(client, LLM_DEPLOYMENT)
        for each in deployments:
            metadata = each["metadata"]
            if "deletionTimestamp" not in metadata:
                with suppress(NotFound, Conflict):  # gone, or another of this name: the next look will tell
                    await client.delete(LLM_DEPLOYMENT, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        left = {LLM_DEPLOYMENT: deployments, **{kind: await _listed(client, kind) for kind in _OWNED}}
    except Transient as error:
        return f"waiting for the API server: {error}"
    return "; ".join(_words(kind, objects) for kind, objects in left.items() if objects)


async def _listed(client: KubeClient, kind: Kind) -> Sequence[Object]:
    """Objects of the kind in all namespaces, of kinds that others have too only Berth's; none of a kind unknown."""
    selector = None if kind in (LLM_DEPLOYMENT, REPLICA_GROUP) else f"{MANAGED_BY}={MANAGED_BY_VALUE}"
    try:
        found = await client.list(kind, label_selector=selector, page=PAGE, transform=_metadata)
    except NotFound:
        return []
    return found.items


def _metadata(each: Object) -> Object:
    """All that is asked about; ConfigMaps of many groups are large."""
    return {"metadata": each["metadata"]}


def _words(kind: Kind, objects: Sequence[Object]) -> str:
    names = [f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in objects[:NAMED]]
    more = f" and {len(objects) - NAMED} more" if len(objects) > NAMED else ""
    return f"{len(objects)} {kind.plural} ({', '.join(names)}{more})"
