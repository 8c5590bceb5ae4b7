"""How long a pod may take to stop, and the parts of it. All in whole seconds.

    deletion -> preStop: NOTICE, requests still accepted while routing forgets the pod
                         drain, requests in flight finish
             -> SIGTERM: STOP_DRAIN, then EXIT for the command (TRITON_EXIT of it for Triton's own wait) -> SIGKILL

Invariant: the parts add up to less than the pod's termination grace, so the kubelet never cuts an orderly stop short.
"""

from __future__ import annotations

import math
from typing import Final

from berth.api.common import seconds
from berth.api.llmdeployment import LLMDeploymentSpec

NOTICE: Final = 5
"""kube-proxy syncs every second, and clients notice a closing connection when they next use it."""
STOP_DRAIN: Final = 10
"""For a process that gets SIGTERM without a preStop hook; after one there is nothing left to wait for."""
TRITON_EXIT: Final = 25
EXIT: Final = 30
MARGIN: Final = 5

DEFAULT_DRAIN: Final = 300
"""Where neither drainTimeout nor traffic and objectives say how long the longest answer takes."""
_SLOWEST: Final = 1.5
"""The longest answer may take this much longer than maximum output x objective per token."""
_SHORTEST_DRAIN: Final = 30


def drain_seconds(spec: LLMDeploymentSpec) -> int:
    """`replicaGroups.drainTimeout`, or long enough for the longest answer at the promised time per token."""
    if spec.replica_groups.drain_timeout:
        return math.ceil(seconds(spec.replica_groups.drain_timeout))
    if spec.traffic is None or spec.objectives.time_per_output_token is None:
        return DEFAULT_DRAIN
    longest = spec.traffic.output_tokens.max_requested * seconds(spec.objectives.time_per_output_token.p95)
    return max(_SHORTEST_DRAIN, min(math.ceil(_SLOWEST * longest), 24 * 3600))


def termination_grace(drain: int) -> int:
    """`terminationGracePeriodSeconds` of a pod whose requests may take `drain` seconds to finish."""
    return NOTICE + drain + STOP_DRAIN + EXIT + MARGIN
