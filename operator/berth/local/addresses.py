"""Loopback addresses: one network 127.N.0.0/16 per cluster, one address per pod, node and Service.

Linux answers on every address of 127.0.0.0/8 without any set-up, so each pod gets an address of its own and listens on
the standard ports. A network is ours while we hold a bound socket in it: other clusters, also of other users, take the
next one, and the kernel gives it back however we end.
"""

from __future__ import annotations

import socket
from typing import Final

from berth.engine import contract
from berth.errors import BerthError

NETWORKS: Final = range(129, 255)
CLAIM_PORT: Final = contract.PORT_PAGE
POD_PORTS: Final = (contract.PORT_HTTP, contract.PORT_GRPC, contract.PORT_METRICS, contract.PORT_JOIN)
SERVICES: Final = 254
"""Third number of the addresses of Services; nodes count from 1."""


class NoAddresses(BerthError):
    """No loopback network is free, or a port that pods need is taken on all addresses; the message says which."""


class LoopbackNetwork:
    """A claimed network; `close` gives it back."""

    def __init__(self, number: int, claim: socket.socket) -> None:
        self.number = number
        self._claim = claim

    @classmethod
    def claim(cls) -> LoopbackNetwork:
        """The first free network. Raises NoAddresses."""
        for number in NETWORKS:
            if held := _bound(f"127.{number}.0.1", CLAIM_PORT):
                try:
                    _check_ports(f"127.{number}.0.1")
                except NoAddresses:
                    held.close()
                    raise
                return cls(number, held)
        raise NoAddresses(
            f"no loopback network is free: {len(NETWORKS)} local clusters run already, or a program listens on port "
            f"{CLAIM_PORT} of all addresses; stop it"
        )

    @property
    def control(self) -> str:
        """Address of the cluster's own processes."""
        return f"127.{self.number}.0.1"

    @property
    def prefix(self) -> str:
        """What all addresses of the network begin with."""
        return f"127.{self.number}."

    def node(self, index: int) -> str:
        """Address of node `index`, counted from 1."""
        return f"127.{self.number}.{index}.1"

    def pods(self, index: int) -> AddressPool:
        """Addresses for the pods of node `index`, counted from 1."""
        return AddressPool(f"127.{self.number}.{index}")

    def services(self) -> AddressPool:
        return AddressPool(f"127.{self.number}.{SERVICES}")

    def fileno(self) -> int:
        """Descriptor of the claim: who inherits it holds the network too."""
        return self._claim.fileno()

    def close(self) -> None:
        self._claim.close()


class AddressPool:
    """253 addresses below a /24, more than a node has pods.

    One that was given back is the last to be given out again: clients may still know it.
    """

    def __init__(self, prefix: str) -> None:
        self._free = [f"{prefix}.{last}" for last in range(2, 255)]

    def take(self) -> str:
        return self._free.pop(0)

    def give_back(self, address: str) -> None:
        self._free.append(address)


def _check_ports(address: str) -> None:
    for port in POD_PORTS:
        if (probe := _bound(address, port)) is None:
            raise NoAddresses(
                f"a program on this machine listens on port {port} of all addresses, and pods need it: stop it, or let "
                "it listen on 127.0.0.1 alone"
            )
        probe.close()


def _bound(address: str, port: int) -> socket.socket | None:
    """A socket bound to the address, which never listens; None where somebody else has it."""
    claim = socket.socket()
    try:
        claim.bind((address, port))
    except OSError:
        claim.close()
        return None
    return claim
