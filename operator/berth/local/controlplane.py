"""A real Kubernetes control plane on loopback: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

For tests and for `berth local`; no containers, no root, no kubelet. Everything lives in one folder: data, certificates,
logs, kubeconfig. The API server is the only one that listens on a port, and that port stays reserved while the control
plane exists, so a restarted API server always gets it back; etcd answers on a Unix socket in the folder, the other two
on nothing. Every process ends when ours does (see `processes`). The only credential is a random token of the group
system:masters, readable by the user alone.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import secrets
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import yaml

from berth.local import binaries
from berth.local.processes import ChildProcess

ENDPOINT_CONTROLLERS: Final = (
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
)
"""Not wanted where pods have loopback addresses: the API server refuses those in EndpointSlices."""

SERVICE_ADDRESSES: Final = "198.18.0.0/16"
"""Cluster addresses of Services. From the range of RFC 2544, which is routed nowhere; nobody answers there."""

PROGRAMS: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
START_LIMIT: Final = 120.0
"""Seconds until a start counts as failed; 2 to 8 are normal."""
_POLL: Final = 0.05


class ControlPlane:
    """The four processes; `async with` starts and stops them, or `start` and `stop` do.

    `directory` is created with mode 0700 and kept; started again in the same directory, all objects are still there.
    `programs` maps the names in PROGRAMS to paths (`binaries.provide`).
    `node_monitor_grace_period` (seconds) is how long a silent node stays Ready: Kubernetes' own default is 50.
    `disabled_controllers` are names as in `kube-controller-manager --controllers`.
    """

    def __init__(
        self,
        directory: Path,
        programs: Mapping[str, Path] | None = None,
        *,
        disabled_controllers: Iterable[str] = (),
        node_monitor_period: float = 5,
        node_monitor_grace_period: float = 50,
    ) -> None:
        self.directory = directory.absolute()
        self.token = secrets.token_urlsafe(24)
        self.kubeconfig = self.directory / "kubeconfig"
        self.certificate_authority = self.directory / "ca.crt"
        self.url = ""
        """https://127.0.0.1:<port>; known after `start`."""
        self._programs = dict(programs or binaries.provide(PROGRAMS))
        self._port: socket.socket | None = None
        client = [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--secure-port=0"]
        client += ["--kube-api-qps=500", "--kube-api-burst=1000"]
        self.etcd = self._process("etcd", *_etcd_arguments())
        self.apiserver = self._process("kube-apiserver", *_apiserver_arguments())
        self.controller_manager = self._process(
            "kube-controller-manager",
            *client,
            "--controllers=" + ",".join(["*", *(f"-{name}" for name in disabled_controllers)]),
            f"--node-monitor-period={node_monitor_period}s",
            f"--node-monitor-grace-period={node_monitor_grace_period}s",
            "--root-ca-file=ca.crt",
            "--service-account-private-key-file=certificates/apiserver.key",
        )
        self.scheduler = self._process("kube-scheduler", *client)

    @property
    def processes(self) -> tuple[ChildProcess, ...]:
        """In the order of starting."""
        return self.etcd, self.apiserver, self.controller_manager, self.scheduler

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when objects can be created and controllers act on them.

        Raises ProcessFailed with the end of the log of whoever is to blame.
        """
        try:
            await self.start_api()
            await self.start_controllers()
        except BaseException:
            await self.stop()
            raise

    async def start_api(self) -> None:
        """The first half of `start`: objects can be created. Raises ProcessFailed; `stop` is the caller's.

        CRDs that are installed now are known to the garbage collector from its beginning: later ones it finds only
        every 30 s, and owners of those kinds take so long to take their dependents along.
        """
        self._prepare()
        self.etcd.start()
        self.apiserver.start()
        await self.ready()

    async def start_controllers(self) -> None:
        """The second half: controllers act on objects. Raises ProcessFailed; `stop` is the caller's."""
        self.controller_manager.start()
        self.scheduler.start()
        await self._default_service_account()

    async def stop(self) -> None:
        """Ends all processes, the newest first; the directory stays."""
        for process in reversed(self.processes):
            await process.stop(grace=2)
        if self._port is not None:
            self._port.close()
            self._port = None

    async def ready(self) -> None:
        """Waits until the API server says that it is ready. Raises ProcessFailed after START_LIMIT."""
        deadline = time.monotonic() + START_LIMIT
        while await self._answer("/readyz") is None:
            if not self.etcd.running:
                raise self.etcd.failure("ended while the API server was waiting for it")
            if not self.apiserver.running:
                raise self.apiserver.failure("ended before it was ready")
            if time.monotonic() > deadline:
                raise self.apiserver.failure(f"was not ready after {START_LIMIT:.0f} s")
            await asyncio.sleep(_POLL)

    def write_kubeconfig(self, path: Path, *, token: str, server: str | None = None) -> None:
        """A kubeconfig for another identity, or another address in front of the same API server."""
        _write_private(path, _kubeconfig(server or self.url, self.certificate_authority, token))

    def _process(self, program: str, *arguments: str) -> ChildProcess:
        return ChildProcess(
            program,
            [self._programs[program], *arguments],
            directory=self.directory,
            log=self.directory / "logs" / f"{program}.log",
        )

    def _prepare(self) -> None:
        """The folder, the token, and a port that stays ours while the API server restarts."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_private(self.directory / "tokens.csv", f"{self.token},berth-admin,berth-admin,system:masters\n")
        self.kubeconfig.unlink(missing_ok=True)
        self._port = _reserved_port()
        port = self._port.getsockname()[1]
        self.url = f"https://127.0.0.1:{port}"
        self.apiserver.arguments = [
            *(argument for argument in self.apiserver.arguments if not argument.startswith("--secure-port=")),
            f"--secure-port={port}",
        ]

    async def _default_service_account(self) -> None:
        """Waits for the first thing that the controller manager makes."""
        deadline = time.monotonic() + START_LIMIT
        while await self._answer("/api/v1/namespaces/default/serviceaccounts/default") is None:
            for process in self.processes:
                if not process.running:
                    raise process.failure("ended while the control plane was starting")
            if time.monotonic() > deadline:
                raise self.controller_manager.failure(f"did nothing for {START_LIMIT:.0f} s")
            await asyncio.sleep(_POLL)

    async def _answer(self, path: str) -> bytes | None:
        """The body of GET `path`; None for any answer but 200, and for none."""
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> bytes | None:
        if not self._trust_api_server():
            return None
        context = ssl.create_default_context(cafile=str(self.certificate_authority))
        address = self.url.removeprefix("https://")
        connection = http.client.HTTPSConnection(address, timeout=2, context=context)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            return answer.read() if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _trust_api_server(self) -> bool:
        """Writes the CA and the kubeconfig once the API server has made its certificate; False before that.

        The API server writes the key last, and its certificate file holds the certificate followed by the CA's.
        """
        if self.kubeconfig.exists():
            return True
        if not (self.directory / "certificates/apiserver.key").exists():
            return False
        chain = (self.directory / "certificates/apiserver.crt").read_text()
        self.certificate_authority.write_text(chain[chain.rindex("-----BEGIN CERTIFICATE-----") :])
        self.write_kubeconfig(self.kubeconfig, token=self.token)
        return True


def _etcd_arguments() -> list[str]:
    """Without fsync: what a crash of the machine may lose is a test cluster."""
    return [
        "--data-dir=etcd",
        "--listen-client-urls=unix://etcd.sock",
        "--advertise-client-urls=unix://etcd.sock",
        "--listen-peer-urls=unix://etcd-peer.sock",
        "--initial-advertise-peer-urls=unix://etcd-peer.sock",
        "--initial-cluster=default=unix://etcd-peer.sock",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver_arguments() -> list[str]:
    """The key of the certificate that the API server makes for itself also signs service account tokens."""
    return [
        "--etcd-servers=unix://etcd.sock",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--permit-port-sharing",
        "--cert-dir=certificates",
        "--token-auth-file=tokens.csv",
        "--authorization-mode=RBAC",
        "--allow-privileged",  # Pod Security decides, as on clusters made by kubeadm
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-signing-key-file=certificates/apiserver.key",
        "--service-account-key-file=certificates/apiserver.key",
        f"--service-cluster-ip-range={SERVICE_ADDRESSES}",
        "--endpoint-reconciler-type=none",
    ]


def _reserved_port() -> socket.socket:
    """A socket bound to a free loopback port. It never listens; SO_REUSEPORT lets the API server bind beside it."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def _kubeconfig(server: str, certificate_authority: Path, token: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "berth", "cluster": {"server": server, "certificate-authority": str(certificate_authority)}}
            ],
            "users": [{"name": "berth", "user": {"token": token}}],
            "contexts": [{"name": "berth", "context": {"cluster": "berth", "user": "berth"}}],
            "current-context": "berth",
        },
        sort_keys=False,
    )


def _write_private(path: Path, text: str) -> None:
    """For secrets: readable by the user alone from the first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
