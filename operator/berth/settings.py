"""Settings of the operator process: one frozen object, read once at start from BERTH_* environment variables.

Every setting has a unit, a default and bounds; a bad value stops the process with all complaints at once. Names never
end like the variables that Kubernetes injects for Services (`_PORT`, `_SERVICE_HOST`), and unknown BERTH_* variables
are left alone, because a Service called `berth-...` puts such names into every pod of its namespace.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

from berth.core.disruption import NOTICE_CONDITIONS, NOTICE_TAINTS
from berth.core.faults import DEFAULT_CONDITIONS, DEFAULT_TAINTS, FaultRules
from berth.core.selectors import Selector
from berth.errors import BerthError

PREFIX: Final = "BERTH_"
_SERVICE: Final = re.compile("[a-z0-9][-a-z0-9]{0,62}/[a-z][-a-z0-9]{0,62}")


class InvalidSettings(BerthError):
    """The environment does not describe an operator that can run; the message names each variable and its bounds."""


def _setting(
    default: Any, description: str, unit: str = "", low: float | None = None, high: float | None = None
) -> Any:
    return field(default=default, metadata={"description": description, "unit": unit, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a controller needs to know to be embedded; all times in seconds."""

    namespace: str = _setting("", "Namespace whose LLMDeployments are served; empty = all.")
    shard: str = _setting("", "Label selector of the LLMDeployments and GPUPools to work on; empty = all of them.")
    kubeconfig: str = _setting("", "Path of a kubeconfig for development; empty = the pod's service account.")
    context: str = _setting("", "Context of that kubeconfig; empty = its current one.")

    workers: int = _setting(16, "Deployments that are reconciled at the same time.", "", 1, 256)
    resync: float = _setting(120.0, "Longest time between two passes over a deployment.", "s", 5, 3600)

    namespace_groups: int = _setting(
        0, "Groups that one namespace may hold, all deployments together; 0 = any.", "", 0, 100_000
    )
    namespace_gpus: int = _setting(
        0, "GPUs that one namespace may hold, all deployments together; 0 = any.", "", 0, 100_000
    )

    api_rate: float = _setting(200.0, "Requests to the API server, average.", "1/s", 1, 10_000)
    api_burst: int = _setting(400, "Requests to the API server at once after silence.", "", 1, 20_000)
    api_parallel: int = _setting(64, "Requests to the API server without an answer yet.", "", 1, 1_000)
    api_timeout: float = _setting(10.0, "Longest time for one request to the API server.", "s", 1, 60)

    watch: float = _setting(15.0, "Length of one watch; a dead one is noticed 5 s after its end.", "s", 5, 600)
    relist: float = _setting(600.0, "Longest time between two full lists of a kind.", "s", 30, 86_400)

    lease_name: str = _setting("berth-operator", "Lease that decides which replica leads; one per installation.")
    lease_namespace: str = _setting("berth-system", "Namespace of that Lease.")
    lease_duration: float = _setting(15.0, "Silence after which another replica takes over.", "s", 1, 300)
    lease_renew_deadline: float = _setting(10.0, "Time without a renewal after which the leader stops.", "s", 0.5, 290)
    lease_retry: float = _setting(2.0, "Time between two attempts to take or renew the Lease.", "s", 0.1, 60)

    listen: str = _setting("127.0.0.1:8080", "Address and port of /metrics and the probes.")
    live: str = _setting("", "Address and port of the page of live figures; empty = none.")
    live_service: str = _setting("", "Service of that page, as namespace/name, for kubectl berth; empty = none.")
    canary_interval: float = _setting(5.0, "Time between two canary requests to a group.", "s", 0.5, 60)
    metrics_interval: float = _setting(10.0, "Time between two readings of a leader's metrics.", "s", 0.5, 20)
    metrics_warm_up: float = _setting(30.0, "Time from a group's first request that is not measured.", "s", 0, 600)
    decision_hour: float = _setting(
        3600.0,
        "What scaling and moves take for an hour: windows, waits, a day is 24 of it; shorter only to watch them.",
        "s",
        10,
        3600,
    )
    prometheus: str = _setting("", "URL of a Prometheus to read metrics from; empty = from the leaders themselves.")

    node_late: float = _setting(12.0, "Silence of a node's Lease after which requests go elsewhere.", "s", 2, 600)
    node_silent: float = _setting(20.0, "Silence of a node's Lease after which its groups are replaced.", "s", 3, 3600)
    gpu_fault_hold: float = _setting(3.0, "How long a GPU must be reported sick to be believed.", "s", 0, 600)
    node_stable: float = _setting(300.0, "Time without a fault before a node is used again.", "s", 0, 86_400)
    gpu_fault_conditions: str = _setting(
        DEFAULT_CONDITIONS, "Node conditions that are GPU faults: Type=Status or Type=Status/!Reason, with commas."
    )
    gpu_fault_taints: str = _setting(DEFAULT_TAINTS, "Keys of node taints that are GPU faults, with commas.")
    notice_taints: str = _setting(
        ",".join(NOTICE_TAINTS), "Keys of taints that announce a node's end, separated by commas."
    )
    notice_conditions: str = _setting(
        ",".join(NOTICE_CONDITIONS), "Node conditions that announce a node's end when True, separated by commas."
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises `InvalidSettings` with one line per bad value."""
        values: dict[str, Any] = {}
        complaints: list[str] = []
        for each in dataclasses.fields(cls):
            text = environment.get(variable(each.name), "").strip()
            if not text:
                continue
            try:
                values[each.name] = _parse(text, type(each.default), each.metadata["low"], each.metadata["high"])
            except ValueError as error:
                complaints.append(f"{variable(each.name)}={text!r}: {error} (default {each.default!r})")
        settings = cls(**values)
        complaints += [] if complaints else settings._contradictions()
        if complaints:
            raise InvalidSettings("\n".join(complaints))
        return settings

    def list_of(self, name: str) -> frozenset[str]:
        """The entries of a setting that is a list."""
        return frozenset(filter(None, (entry.strip() for entry in getattr(self, name).split(","))))

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port of `listen`; an IPv6 host stands in brackets there."""
        return _address("listen", self.listen)

    @property
    def live_address(self) -> tuple[str, int] | None:
        """Host and port of `live`, None where there is no such page."""
        return _address("live", self.live) if self.live else None

    @property
    def fault_rules(self) -> FaultRules:
        """Which node conditions and taints are GPU faults. Raises ValueError for an entry that cannot be read."""
        return FaultRules.parse(self.gpu_fault_conditions, self.gpu_fault_taints)

    @property
    def shard_selector(self) -> Selector:
        """What this installation works on. Raises ValueError for a selector that cannot be read."""
        return Selector.parse(self.shard)

    def _contradictions(self) -> list[str]:
        found = []
        if not self.lease_retry < self.lease_renew_deadline < self.lease_duration:
            names = " < ".join(variable(name) for name in ("lease_retry", "lease_renew_deadline", "lease_duration"))
            values = f"{self.lease_retry:g}, {self.lease_renew_deadline:g}, {self.lease_duration:g}"
            found.append(f"{names} must hold, not {values}")
        if not self.node_late < self.node_silent:
            names = f"{variable('node_late')} < {variable('node_silent')}"
            found.append(f"{names} must hold, not {self.node_late:g}, {self.node_silent:g}")
        try:
            _ = self.fault_rules
        except ValueError as error:
            found.append(f"{variable('gpu_fault_conditions')}: {error}")
        try:
            _ = self.shard_selector
        except ValueError as error:
            found.append(f"{variable('shard')}: {error}")
        if self.context and not self.kubeconfig:
            found.append(f"{variable('context')} needs {variable('kubeconfig')}")
        if self.prometheus and not _is_http_url(self.prometheus):
            found.append(f"{variable('prometheus')}={self.prometheus!r}: must be a URL such as http://prometheus:9090")
        try:
            _ = self.listen_address, self.live_address
        except ValueError as error:
            found.append(str(error))
        if self.live_service and not _SERVICE.fullmatch(self.live_service):
            found.append(f"{variable('live_service')}={self.live_service!r}: must be namespace/name")
        return found


def _address(name: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{variable(name)}={text!r}: must be host:port, such as 0.0.0.0:8080")
    return host.strip("[]"), int(port)


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:
        return False


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def _parse(text: str, type_: Callable[[str], Any], low: float | None, high: float | None) -> Any:
    if type_ is str:
        return text
    try:
        value = type_(text)
    except ValueError:
        raise ValueError("must be a whole number" if type_ is int else "must be a number") from None
    if low is not None and high is not None and not low <= value <= high:  # not-a-number fails here too
        raise ValueError(f"must be from {low:g} to {high:g}")
    return value
