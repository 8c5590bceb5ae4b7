"""How orders are carried out, as far as no API server has to be asked for it."""

from __future__ import annotations

import asyncio
from typing import Any

from berth.controller.execute import Executor
from berth.core import actions as do
from berth.core.observed import Member


def leader(number: int) -> Member:
    return Member(f"pod-{number}", f"uid-{number}", 0, 0.0, "Running", f"n{number}", f"10.0.0.{number}")


class Server:
    """Writes down what reaches it, and leaders that answer only once all of them were called."""

    def __init__(self, leaders: int) -> None:
        self.story: list[str] = []
        self._called = asyncio.Barrier(leaders)

    async def delete(self, _kind: Any, _namespace: str, name: str, *, uid: str, grace_seconds: int | None) -> None:
        self.story.append(f"delete {name} {uid} {grace_seconds}")

    async def drain(self, address: str) -> None:
        self.story.append(f"drain {address}")
        await self._called.wait()

    resume = drain


async def test_nobody_waits_for_leaders_that_do_not_answer_when_they_are_told_something() -> None:
    """As when a zone is lost while its groups drain: all would have to run out of time, one after the other."""
    server = Server(3)
    made_up: Any = server
    orders = (do.Drain(leader(1)), do.Resume(leader(2)), do.Drain(leader(3)), do.DeleteMember(leader(4), 5))
    async with asyncio.timeout(20):
        await Executor(made_up, made_up, made_up, lambda: 0.0).run("ns", orders, made_up)
    assert server.story[0] == "delete pod-4 uid-4 5", "what the API server is asked for comes first"
    assert sorted(server.story[1:]) == ["drain 10.0.0.1", "drain 10.0.0.2", "drain 10.0.0.3"]
