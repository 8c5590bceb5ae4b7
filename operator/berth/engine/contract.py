"""Names shared by the pod's renderer, the launcher and the model: ports, environment, exit codes, file names.

The prose is docs/designs/006-launcher.md; both change together.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from berth import labels

MODEL_NAME: Final = labels.MODEL_NAME
PORT_HTTP: Final = labels.PORT_HTTP
PORT_GRPC: Final = labels.PORT_GRPC
PORT_METRICS: Final = labels.PORT_METRICS
PORT_PAGE: Final = labels.PORT_LAUNCHER
PORT_JOIN: Final = 8004
"""Members of a multi-pod group join the leader's launcher here."""

POD_IP: Final = "BERTH_POD_IP"
INCARNATION: Final = "BERTH_INCARNATION"
GROUP: Final = "BERTH_GROUP"
POOL: Final = "BERTH_POOL"
HOSTS_FILE: Final = "BERTH_HOSTS_FILE"
RUN_DIR: Final = "BERTH_RUN_DIR"
TERMINATION_LOG: Final = "BERTH_TERMINATION_LOG"
MODEL_CONFIG: Final = "BERTH_MODEL_CONFIG"
SIMULATED: Final = "BERTH_SIMULATED"
FAULT_FILE: Final = "BERTH_FAULT_FILE"
LIB: Final = "BERTH_LIB"
"""Set by the launcher for the model: Triton's Python stub ignores PYTHONPATH."""

STATE_FILE: Final = "state.json"
"""In the run directory; written by the model, read by the launcher."""
CONTROL_FILE: Final = "control.json"
"""In the run directory; written by the launcher, read by the model."""
DEFAULT_FAULT_FILE: Final = "faults.json"

STARTING: Final = 15
"""Seconds from the start of a container within which its launcher surely answers."""
CANARY_ID: Final = "berth-canary"
"""Requests whose id starts so prove life; their latencies are left out of the histograms."""


class Exit(IntEnum):
    """Exit codes of the launcher that are not the command's own."""

    STOPPED = 0
    USAGE = 2
    HANG = 70
    LOAD_FAILED = 71
    MEMBER_LOST = 72
    JOIN_TIMEOUT = 73
    ENGINE_LOST = 74
    FIRST_TOKEN_TIMEOUT = 75

    @property
    def reason(self) -> str:
        """CamelCase word that opens the termination message."""
        return "".join(part.capitalize() for part in self.name.split("_"))


COMMAND_EXITED: Final = "CommandExited"
"""Opens the termination message when the command ended by itself; the exit code is then the command's."""
