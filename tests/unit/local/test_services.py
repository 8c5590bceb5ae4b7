"""A Service sends connections in turn to pods that are ready, and leaves standing ones alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from berth.local.addresses import LoopbackNetwork
from berth.local.names import hosts, write_hosts
from berth.local.services import PortProxy, ServiceProxies, endpoints
from tests.support.loops import connections_closed


def pod(name: str, address: str, *, ready: bool = True, labels: dict[str, str] | None = None, **more: Any) -> Any:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": labels or {"app": "x"},
            **more.pop("metadata", {}),
        },
        "spec": {"containers": [{"ports": [{"name": "grpc", "containerPort": 8001}]}], **more},
        "status": {"podIP": address, "phase": "Running", "conditions": [condition]},
    }


def service(**spec: Any) -> Any:
    defaults = {"selector": {"app": "x"}, "ports": [GRPC], "clusterIP": "198.18.0.9"}
    return {"metadata": {"name": "s", "namespace": "default"}, "spec": {**defaults, **spec}}


PORT = 8080
"""Anybody may listen there; below 1024 only root."""
GRPC = {"port": PORT, "targetPort": "grpc"}


def test_only_ready_pods_that_match_and_stay_get_connections() -> None:
    pods = [
        pod("a", "127.9.0.1"),
        pod("unready", "127.9.0.2", ready=False),
        pod("other", "127.9.0.3", labels={"app": "y"}),
        pod("leaving", "127.9.0.4", metadata={"deletionTimestamp": "now"}),
        pod("elsewhere", "127.9.0.5", metadata={"namespace": "n2"}),
        pod("more", "127.9.0.6", labels={"app": "x", "z": "1"}),
    ]
    assert endpoints(service(), GRPC, pods) == [("127.9.0.1", 8001), ("127.9.0.6", 8001)]


def test_target_ports_are_numbers_or_names_and_a_name_that_a_pod_lacks_means_none() -> None:
    pods = [pod("a", "127.9.0.1")]
    assert endpoints(service(), {"port": 8001}, pods) == [("127.9.0.1", 8001)]
    assert endpoints(service(), {"port": 80, "targetPort": "http"}, pods) == []


def test_a_service_without_a_selector_has_no_pods() -> None:
    assert endpoints(service(selector=None), GRPC, [pod("a", "127.9.0.1")]) == []


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def network() -> AsyncIterator[LoopbackNetwork]:
    claimed = LoopbackNetwork.claim()
    yield claimed
    await connections_closed()
    claimed.close()


@contextlib.asynccontextmanager
async def echo(address: str, name: str) -> AsyncIterator[None]:
    """Says its name, then repeats what it hears."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{name}\n".encode())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, address, 8001)
    async with server:
        yield


@contextlib.asynccontextmanager
async def connection(address: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_connections_take_turns_and_stay_when_the_service_changes(network: LoopbackNetwork) -> None:
    first, second = f"{network.prefix}1.2", f"{network.prefix}1.3"
    proxies = ServiceProxies(network.services())
    async with echo(first, "first"), echo(second, "second"):
        await proxies.sync([service()], [pod("a", first), pod("b", second)])
        address = proxies.address("default", "s")
        assert address is not None
        async with connection(address, PORT) as one, connection(address, PORT) as two:
            assert {await one[0].readline(), await two[0].readline()} == {b"first\n", b"second\n"}
            await proxies.sync([service()], [pod("a", first, ready=False), pod("b", second)])
            for reader, writer in (one, two):
                writer.write(b"still here\n")
                assert await reader.readline() == b"still here\n"
            for _ in range(3):
                async with connection(address, PORT) as (reader, _writer):
                    assert await reader.readline() == b"second\n"
            (described,) = proxies.describe()
            assert (described["ports"], described["pods"]) == ([PORT], [second])
        proxies.close()


async def test_much_data_arrives_whole_and_so_does_its_end(network: LoopbackNetwork) -> None:
    first = f"{network.prefix}1.2"
    async with echo(first, "first"):
        proxy = await PortProxy.listen(f"{network.prefix}254.2", 8081)
        proxy.targets = [(first, 8001)]
        async with connection(f"{network.prefix}254.2", 8081) as (reader, writer):
            sent = bytes(range(256)) * 40_000
            assert await reader.readline() == b"first\n"
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == sent
        proxy.close()


@pytest.mark.parametrize("said", [b"", b"hello\n"])
async def test_a_client_that_has_said_all_before_its_pod_is_dialled_is_heard(
    network: LoopbackNetwork, said: bytes
) -> None:
    async with echo(f"{network.prefix}1.2", "first"):
        proxy = await PortProxy.listen(f"{network.prefix}254.2", 8083)
        proxy.targets = [(f"{network.prefix}1.2", 8001)]
        client = socket.create_connection((f"{network.prefix}254.2", 8083))
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        reader, writer = await asyncio.open_connection(sock=client)  # only now does the proxy get its turn
        assert await reader.read() == b"first\n" + said
        writer.close()
        proxy.close()


async def test_with_nobody_ready_a_connection_is_refused(network: LoopbackNetwork) -> None:
    proxy = await PortProxy.listen(f"{network.prefix}254.2", 8082)
    with contextlib.suppress(ConnectionResetError):
        async with connection(f"{network.prefix}254.2", 8082) as (reader, _):
            assert await reader.read() == b""
    proxy.targets = [(f"{network.prefix}9.9", 8001)]  # nobody listens there
    with contextlib.suppress(ConnectionResetError):
        async with connection(f"{network.prefix}254.2", 8082) as (reader, _):
            assert await reader.read() == b""
    assert proxy.connections == 0
    proxy.close()


async def test_a_service_that_is_gone_ends_its_connections_and_gives_its_address_back(network: LoopbackNetwork) -> None:
    first = f"{network.prefix}1.2"
    proxies = ServiceProxies(network.services())
    async with echo(first, "first"):
        await proxies.sync([service()], [pod("a", first)])
        address = proxies.address("default", "s")
        assert address is not None
        async with connection(address, PORT) as (reader, _):
            assert await reader.readline() == b"first\n"
            await proxies.sync([], [])
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address, PORT)
        assert proxies.describe() == []


async def test_a_port_that_is_refused_is_said_once_and_takes_no_other_along(
    network: LoopbackNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    proxies = ServiceProxies(network.services())
    await proxies.sync([service()], [])
    address = proxies.address("default", "s")
    assert address is not None
    with socket.create_server((address, 8090)):
        ports = [{"port": 8090, "targetPort": "grpc"}, GRPC, {"port": 8091, "targetPort": "grpc"}]
        for _ in range(3):
            await proxies.sync([service(ports=ports)], [])
    (said,) = caplog.messages
    assert "Service default/s: nothing listens on port 8090" in said
    assert proxies.describe()[0]["ports"] == [PORT, 8091]
    await proxies.sync([service(ports=ports)], [])
    assert proxies.describe()[0]["ports"] == [PORT, 8090, 8091]
    proxies.close()


async def test_headless_services_and_those_without_selector_have_no_address(network: LoopbackNetwork) -> None:
    proxies = ServiceProxies(network.services())
    await proxies.sync([service(clusterIP="None"), service(selector=None)], [])
    assert proxies.describe() == []


# --- names ------------------------------------------------------------------------------------------------------------


def test_members_have_names_before_they_are_ready_and_services_have_theirs() -> None:
    member = pod("m", "127.9.1.2", ready=False, hostname="m", subdomain="group")
    alone = pod("alone", "127.9.1.3")
    files = hosts([member, alone], [service()], lambda _namespace, _name: "127.9.254.2")
    assert files == {
        "default": "127.9.1.2 m.group m.group.default m.group.default.svc.cluster.local\n"
        "127.9.254.2 s s.default s.default.svc.cluster.local\n"
    }


def test_members_that_ended_have_no_name() -> None:
    ended = pod("m", "127.9.1.2", hostname="m", subdomain="group")
    ended["status"]["phase"] = "Failed"
    assert hosts([ended], [], lambda _namespace, _name: None) == {}


def test_hosts_files_are_what_they_should_be_and_no_more(tmp_path: Any) -> None:
    write_hosts(tmp_path, {"a": "1\n", "b": "2\n"})
    write_hosts(tmp_path, {"b": "3\n"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "3\n"}
