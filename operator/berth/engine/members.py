"""Members of a multi-pod group: workers join the leader's launcher over TCP and stay connected.

One line of JSON from the worker, one line back (`ok`, or why not), then a dot every second from both sides. A closed or
silent connection is a lost member. Before the group is complete a lost member may come back; afterwards it may not:
a collective operation does not survive a member.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BEAT: Final = 1.0
SILENCE: Final = 5.0
RETRY: Final = 0.5
MAX_LINE: Final = 1024


@dataclass(frozen=True, slots=True)
class Member:
    """Who joins: members of other groups or incarnations are turned away."""

    index: int
    group: str
    incarnation: int


class Lost(Exception):
    """A member of a complete group, or its leader, is gone."""


class Refused(Exception):
    """The leader does not take this member."""


async def resolve(name: str, port: int, hosts_file: str | None) -> str:
    """Address of a name: the hosts file first (lines `address name`), then DNS. Raises OSError."""
    if hosts_file and (address := look_up(name, Path(hosts_file))):
        return address
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def look_up(name: str, hosts_file: Path) -> str | None:
    """Address of a name in a hosts file; None if it is not there."""
    with contextlib.suppress(OSError):
        for line in hosts_file.read_text().splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            if name in names:
                return address
    return None


class Roster:
    """The leader's side. `complete` is set once all others have joined; `lost` once one of them is gone after that."""

    def __init__(self, leader: Member, members: int) -> None:
        self._leader = leader
        self._members = members
        self._joined: dict[int, asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self.complete = asyncio.Event()
        self.lost = ""
        if members == 1:
            self.complete.set()

    @property
    def joined(self) -> int:
        """Members present, the leader included."""
        return 1 + len(self._joined)

    async def listen(self, host: str | None, port: int) -> None:
        self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_LINE)

    def close(self) -> None:
        if self._server:
            self._server.close()
        for writer in self._joined.values():
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index: int | None = None
        try:
            async with asyncio.timeout(SILENCE):
                line = await reader.readuntil(b"\n")
            index, refusal = self._admit(line)
            if refusal:
                index = None
                writer.write(f"{refusal}\n".encode())
                await writer.drain()
                return
            self._joined[index] = writer
            writer.write(b"ok\n")
            if self.joined == self._members:
                self.complete.set()
            await beat(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, Lost):
            pass
        finally:
            writer.close()
            if index is not None and self._joined.get(index) is writer:
                if self.complete.is_set():
                    self.lost = self.lost or f"member {index} is gone"
                else:
                    del self._joined[index]

    def _admit(self, line: bytes) -> tuple[int, str]:
        try:
            member = Member(**json.loads(line))
        except (ValueError, TypeError):
            return 0, "no member"
        if (member.group, member.incarnation) != (self._leader.group, self._leader.incarnation):
            return 0, f"this is {self._leader.group} incarnation {self._leader.incarnation}"
        if not 0 < member.index < self._members:
            return 0, f"member {member.index} of {self._members} members"
        if member.index in self._joined:
            return 0, f"member {member.index} is already here"
        return member.index, ""


async def join(member: Member, address: Callable[[], Awaitable[str]], port: int, joined: asyncio.Event) -> None:
    """The worker's side: tries until the leader takes it, sets `joined`, and raises Lost when the leader is gone."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(await address(), port)
        except OSError:
            await asyncio.sleep(RETRY)
            continue
        try:
            document = {"index": member.index, "group": member.group, "incarnation": member.incarnation}
            writer.write(json.dumps(document).encode() + b"\n")
            async with asyncio.timeout(SILENCE):
                answer = await reader.readuntil(b"\n")
            if answer == b"ok\n":
                joined.set()
                await beat(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, Lost) as error:
            if joined.is_set():
                raise Lost("the leader is gone") from error
        finally:
            writer.close()
        await asyncio.sleep(RETRY)


async def beat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends a dot every BEAT and reads the other side's. Raises Lost, OSError or TimeoutError; never returns."""
    keep_alive = asyncio.create_task(_dots(writer))
    try:
        while True:
            async with asyncio.timeout(SILENCE):
                if not await reader.read(MAX_LINE):
                    raise Lost("connection closed")
    finally:
        keep_alive.cancel()


async def _dots(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(BEAT)
