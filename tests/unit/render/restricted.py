"""The Pod Security Standard `restricted`, written down a second time, from the standard's own page:
https://kubernetes.io/docs/concepts/security/pod-security-standards/.

An oracle for rendered pods that needs no API server; tests/integration/render asks the real admission plugin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
CAPABILITIES = {"NET_BIND_SERVICE"}
SECCOMP = {"RuntimeDefault", "Localhost"}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}


def violations(pod: Mapping[str, Any]) -> list[str]:
    """What of the pod `restricted` forbids; empty if it is admitted."""
    return [*_of_pod(pod), *(found for container in _containers(pod) for found in _of_container(pod, container))]


def _containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        yield from pod["spec"].get(kind, ())


def _of_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    if spec.get("hostUsers") is not None:
        yield "hostUsers relaxes the rules this oracle checks"
    for volume in spec.get("volumes", ()):
        if set(volume) - {"name"} - VOLUMES or len(volume) != 2:
            yield f"volume {volume}"
    context = spec.get("securityContext", {})
    for sysctl in context.get("sysctls", ()):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl}"
    for key in pod["metadata"].get("annotations", {}):
        if key.startswith(
            ("container.apparmor.security.beta.kubernetes.io", "container.seccomp.security.alpha", "seccomp.")
        ):
            yield f"annotation {key}"
    yield from _identity("pod", context)


def _of_container(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    name, own, shared = container["name"], container.get("securityContext", {}), pod["spec"].get("securityContext", {})
    if own.get("privileged"):
        yield f"{name}: privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: privilege escalation"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - CAPABILITIES:
        yield f"{name}: capabilities {capabilities}"
    if own.get("runAsNonRoot", shared.get("runAsNonRoot")) is not True:
        yield f"{name}: may run as root"
    if own.get("seccompProfile", shared.get("seccompProfile", {})).get("type") not in SECCOMP:
        yield f"{name}: seccomp"
    if own.get("procMount", "Default") != "Default":
        yield f"{name}: procMount"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield f"{name}: host port"
    hooks = container.get("lifecycle", {}).values()
    for probe in (*(container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")), *hooks):
        if any(probe.get(kind, {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield f"{name}: probe of a foreign host"
    yield from _identity(name, own)


def _identity(where: str, context: Mapping[str, Any]) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield f"{where}: user 0"
    if context.get("windowsOptions"):
        yield f"{where}: windowsOptions"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{where}: SELinux {selinux}"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield f"{where}: AppArmor"
