"""Services on loopback: an address per Service, and a TCP proxy from its ports to the pods that are ready.

The API server refuses loopback addresses in EndpointSlices, so what the endpoint controllers and kube-proxy do in a
cluster is done here. As there, a Service balances connections, in turn; a connection that stands stays where it is when
the Service changes; nobody ready means that a connection is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from berth.kube.kinds import Object
from berth.local.addresses import AddressPool

_log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 5.0

Endpoint = tuple[str, int]
Key = tuple[str, str]


def endpoints(service: Mapping[str, Any], port: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> list[Endpoint]:
    """Where connections to `port` of the Service may go: its selector's pods that are ready and not being deleted."""
    selector, wanted = service["spec"].get("selector") or {}, port.get("targetPort", port["port"])
    return [
        (pod["status"]["podIP"], number)
        for pod in pods
        if selector
        and pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        and selector.items() <= (pod["metadata"].get("labels") or {}).items()
        and _ready(pod)
        and (number := _port(pod, wanted))
    ]


def _ready(pod: Mapping[str, Any]) -> bool:
    status = pod.get("status", {})
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())
    return ready and "podIP" in status and "deletionTimestamp" not in pod["metadata"]


def _port(pod: Mapping[str, Any], wanted: int | str) -> int:
    """0 for a name that the pod does not have."""
    if isinstance(wanted, int):
        return wanted
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or ()]
    return next((port["containerPort"] for port in ports if port.get("name") == wanted), 0)


class ServiceProxies:
    """Keeps a proxy for every port of every Service with an address of its own; `sync` whenever something changed."""

    def __init__(self, addresses: AddressPool) -> None:
        self._pool = addresses
        self._addresses: dict[Key, str] = {}
        self._proxies: dict[tuple[Key, int], PortProxy] = {}
        self._refused: set[tuple[Key, int]] = set()

    async def sync(self, services: Iterable[Object], pods: Sequence[Object]) -> None:
        wanted: dict[tuple[Key, int], list[Endpoint]] = {}
        for service in services:
            if service["spec"].get("selector") and service["spec"].get("clusterIP") != "None":
                key = (service["metadata"]["namespace"], service["metadata"]["name"])
                for port in service["spec"].get("ports") or ():
                    if port.get("protocol", "TCP") == "TCP":
                        wanted[key, port["port"]] = endpoints(service, port, pods)
        for gone in self._proxies.keys() - wanted.keys():
            self._proxies.pop(gone).close()
        for key in self._addresses.keys() - {key for key, _ in wanted}:
            self._pool.give_back(self._addresses.pop(key))
        for (key, port), targets in wanted.items():
            if key not in self._addresses:
                self._addresses[key] = self._pool.take()
            if (key, port) not in self._proxies and not await self._listen(key, port):
                continue
            self._proxies[key, port].targets = targets
        self._refused &= wanted.keys()

    async def _listen(self, key: Key, port: int) -> bool:
        """Below 1024 a port may need root: then this one has no proxy, which is said once, and all others do."""
        try:
            self._proxies[key, port] = await PortProxy.listen(self._addresses[key], port)
        except OSError as error:
            if (key, port) not in self._refused:
                self._refused.add((key, port))
                remedy = "; choose one from 1024 on" if isinstance(error, PermissionError) else ""
                _log.warning("Service %s: nothing listens on port %d: %s%s", "/".join(key), port, error, remedy)
            return False
        self._refused.discard((key, port))
        return True

    def address(self, namespace: str, name: str) -> str | None:
        return self._addresses.get((namespace, name))

    def describe(self) -> list[dict[str, Any]]:
        """One entry per Service: namespace, name, address, ports, and addresses of the pods behind it."""
        found = []
        for key, address in sorted(self._addresses.items()):
            proxies = {port: proxy for (owner, port), proxy in self._proxies.items() if owner == key}
            behind = sorted({host for proxy in proxies.values() for host, _ in proxy.targets})
            open_now = sum(proxy.connections for proxy in proxies.values())
            found.append(
                {
                    "namespace": key[0],
                    "name": key[1],
                    "address": address,
                    "ports": sorted(proxies),
                    "pods": behind,
                    "connections": open_now,
                }
            )
        return found

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


class PortProxy:
    """One listening port; `targets` may change at any time."""

    def __init__(self) -> None:
        self.targets: list[Endpoint] = []
        self._turn = 0
        self._fronts: set[_Front] = set()
        self._server: asyncio.Server

    @classmethod
    async def listen(cls, address: str, port: int) -> PortProxy:
        proxy = cls()
        proxy._server = await asyncio.get_running_loop().create_server(lambda: _Front(proxy), address, port)
        return proxy

    @property
    def connections(self) -> int:
        return len(self._fronts)

    def choose(self) -> Endpoint | None:
        """Whose turn it is."""
        if not self.targets:
            return None
        self._turn += 1
        return self.targets[self._turn % len(self.targets)]

    def close(self) -> None:
        """Ends the connections as well."""
        self._server.close()
        for front in list(self._fronts):
            front.abort()

    def opened(self, front: _Front) -> None:
        self._fronts.add(front)

    def closed(self, front: _Front) -> None:
        self._fronts.discard(front)


class _Half(asyncio.Protocol):
    """One side of a proxied connection: what comes in goes out on the other side, at the pace of the slower one."""

    transport: asyncio.Transport
    other: _Half | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        if self.other is not None and self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None:
            (self.other.transport.abort if error else self.other.transport.close)()


class _Front(_Half):
    """The client's side; finds its pod when it is made, and is closed like a refused connection if there is none."""

    def __init__(self, proxy: PortProxy) -> None:
        self._proxy = proxy
        self._dialling: asyncio.Task[None] | None = None
        self._early: bytes = b""
        """What the client said before there was somebody to say it to."""
        self._early_end = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.opened(self)
        self._dialling = asyncio.create_task(self._dial())

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            super().data_received(data)
        else:
            self._early += data
            self.transport.pause_reading()  # not before: Python 3.11.2 forgets a pause made in connection_made

    def eof_received(self) -> bool:
        self._early_end = self.other is None
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._proxy.closed(self)
        if self._dialling is not None:
            self._dialling.cancel()
        super().connection_lost(error)

    def abort(self) -> None:
        self.transport.abort()

    async def _dial(self) -> None:
        target = self._proxy.choose()
        try:
            if target is None:
                raise ConnectionRefusedError("no pod is ready")
            async with asyncio.timeout(CONNECT_SECONDS):
                _, back = await asyncio.get_running_loop().create_connection(lambda: _Back(self), *target)
        except OSError as error:
            _log.debug("%s: %s", target, error)
            self.transport.abort()
            return
        self.other = back
        back.transport.write(self._early)
        if self._early_end:
            back.transport.write_eof()
        self.transport.resume_reading()


class _Back(_Half):
    """The pod's side."""

    def __init__(self, front: _Front) -> None:
        self.other = front
