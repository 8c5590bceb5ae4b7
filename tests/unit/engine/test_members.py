"""Joining a group over real sockets on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from berth.engine import members
from berth.engine.members import Lost, Member, Roster, join, look_up

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "BEAT", 0.02)
    monkeypatch.setattr(members, "SILENCE", 0.2)
    monkeypatch.setattr(members, "RETRY", 0.02)


class Group:
    """A leader of three and its workers."""

    def __init__(self) -> None:
        self.roster = Roster(Member(0, "g0", 3), members=3)
        self.port = 0
        self.joined: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def listen(self) -> None:
        await self.roster.listen(HOST, 0)
        assert self.roster._server is not None
        self.port = self.roster._server.sockets[0].getsockname()[1]

    def worker(self, index: int, incarnation: int = 3) -> asyncio.Task[None]:
        async def address() -> str:
            return HOST

        self.joined[index] = asyncio.Event()
        member = Member(index, "g0", incarnation)
        self.tasks[index] = asyncio.create_task(join(member, address, self.port, self.joined[index]))
        return self.tasks[index]

    async def leave(self, index: int) -> None:
        self.tasks[index].cancel()
        await asyncio.gather(self.tasks[index], return_exceptions=True)


@pytest.fixture
async def group() -> AsyncIterator[Group]:
    group = Group()
    await group.listen()
    yield group
    for index in group.tasks:
        await group.leave(index)
    group.roster.close()
    await asyncio.sleep(0.02)


async def settled(condition: object, seconds: float = 2.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_complete_when_all_are_there(group: Group) -> None:
    group.worker(1)
    await group.joined[1].wait()
    assert not group.roster.complete.is_set()
    group.worker(2)
    await group.joined[2].wait()
    await group.roster.complete.wait()
    await asyncio.sleep(0.5)  # several silences long: beats keep it
    assert (group.roster.joined, group.roster.lost) == (3, "")


async def test_a_member_may_come_back_before_the_group_is_complete(group: Group) -> None:
    group.worker(1)
    await group.joined[1].wait()
    await group.leave(1)
    await settled(lambda: group.roster.joined == 1)
    group.worker(1), group.worker(2)
    await group.roster.complete.wait()
    assert group.roster.lost == ""


async def test_a_member_that_leaves_a_complete_group_is_lost_for_good(group: Group) -> None:
    group.worker(1), group.worker(2)
    await group.roster.complete.wait()
    await group.leave(2)
    await settled(lambda: group.roster.lost)
    assert group.roster.lost == "member 2 is gone"
    late = group.worker(2)
    await asyncio.sleep(0.1)
    assert not group.joined[2].is_set()
    assert not late.done()


async def test_a_silent_member_is_a_lost_member(group: Group) -> None:
    group.worker(1)
    reader, writer = await asyncio.open_connection(HOST, group.port)
    writer.write(b'{"index": 2, "group": "g0", "incarnation": 3}\n')
    assert await reader.readline() == b"ok\n"
    await group.roster.complete.wait()
    await settled(lambda: group.roster.lost == "member 2 is gone")
    writer.close()


async def test_a_worker_learns_that_its_leader_is_gone(group: Group) -> None:
    worker = group.worker(1)
    await group.joined[1].wait()
    group.roster.close()
    with pytest.raises(Lost, match="the leader is gone"):
        await worker


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'{"index": 1, "group": "g1", "incarnation": 3}\n', b"this is g0 incarnation 3\n"),
        (b'{"index": 1, "group": "g0", "incarnation": 2}\n', b"this is g0 incarnation 3\n"),
        (b'{"index": 3, "group": "g0", "incarnation": 3}\n', b"member 3 of 3 members\n"),
        (b'{"index": 0, "group": "g0", "incarnation": 3}\n', b"member 0 of 3 members\n"),
        (b"hello\n", b"no member\n"),
        (b"[]\n", b"no member\n"),
    ],
)
async def test_strangers_are_turned_away(group: Group, line: bytes, answer: bytes) -> None:
    reader, writer = await asyncio.open_connection(HOST, group.port)
    writer.write(line)
    assert await reader.readline() == answer
    writer.close()
    assert group.roster.joined == 1


def test_names_are_looked_up_in_the_hosts_file(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# pods\n127.1.0.1 a-0 a-0.a # leader\n\n127.1.0.2 a-1\n")
    assert look_up("a-0.a", hosts) == "127.1.0.1"
    assert look_up("a-1", hosts) == "127.1.0.2"
    assert look_up("b", hosts) is None
    assert look_up("b", tmp_path / "none") is None
