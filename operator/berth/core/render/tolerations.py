"""What pods tolerate: ours first, because of several tolerations for one taint the first one decides how long.

Nodes that are not ready or not reachable are tolerated without limit: the taint manager must not end groups that
serve on, such as after a partition; Berth itself decides when a silent node has lost its groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from berth.api.common import Toleration

OURS: Final = (
    Toleration(key="node.kubernetes.io/not-ready", operator="Exists", effect="NoExecute"),
    Toleration(key="node.kubernetes.io/unreachable", operator="Exists", effect="NoExecute"),
    Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),
)


def tolerations(pool: Iterable[Toleration], user: Iterable[Toleration]) -> tuple[Toleration, ...]:
    """Ours, the pool's, the user's, without repetitions."""
    return tuple(dict.fromkeys((*OURS, *pool, *user)))
