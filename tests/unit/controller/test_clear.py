"""What is deleted before the CRDs go, and what is waited for; with real servers in tests/integration/chart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from berth.controller import clear as module
from berth.controller.clear import clear
from berth.errors import Transient
from berth.kube.client import Listing
from berth.kube.errors import NotFound
from berth.kube.kinds import CONFIG_MAP, LLM_DEPLOYMENT, POD, REPLICA_GROUP, SERVICE, Kind, Object

pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)


def named(name: str, **metadata: Any) -> Object:
    return {"metadata": {"namespace": "serving", "name": name, "uid": f"uid-{name}", **metadata}}


class Server:
    """Objects by kind; with each look at pods the garbage collector takes one kind along, owners first."""

    def __init__(self, *, trouble: Callable[[], None] = lambda: None, unknown: bool = False) -> None:
        self.objects: dict[Kind, list[Object]] = {
            LLM_DEPLOYMENT: [named("llama"), named("leaving", deletionTimestamp="2026-01-01T00:00:00Z")],
            REPLICA_GROUP: [named("llama-g0-1")],
            SERVICE: [named("llama")],
            CONFIG_MAP: [named("files")],
            POD: [named(f"llama-g0-1-{number}") for number in range(5)],
        }
        self.deleted: list[tuple[Kind, str, str | None]] = []
        self.selectors: dict[Kind, str | None] = {}
        self._trouble = trouble
        self._unknown = unknown

    async def list(self, kind: Kind, *, label_selector: str | None, **_: Any) -> Listing:
        self._trouble()
        self.selectors[kind] = label_selector
        if self._unknown and kind in (LLM_DEPLOYMENT, REPLICA_GROUP):
            raise NotFound(f"list {kind.plural}: 404")
        found = list(self.objects.get(kind, ()))
        if kind is POD and (self.deleted or self._unknown):
            self.objects.pop(next(iter(self.objects), POD), None)
        return Listing(found, "1")

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None) -> None:
        self.deleted.append((kind, f"{namespace}/{name}", uid))


async def told(server: Server) -> list[str]:
    words: list[str] = []
    await clear(server, words.append)  # type: ignore[arg-type]
    return words


async def test_only_deployments_are_deleted_and_all_that_was_theirs_is_waited_for() -> None:
    server = Server()
    words = await told(server)
    assert set(server.deleted) == {(LLM_DEPLOYMENT, "serving/llama", "uid-llama")}
    assert server.objects == {}
    assert words[0].startswith(
        "2 llmdeployments (serving/llama, serving/leaving); 1 replicagroups (serving/llama-g0-1);"
    )
    assert words[-1].startswith("5 pods (serving/llama-g0-1-0, serving/llama-g0-1-1, serving/llama-g0-1-2 and 2 more)")
    ours = "app.kubernetes.io/managed-by=berth"
    assert {kind.plural for kind, selector in server.selectors.items() if selector != ours} == {
        "llmdeployments",
        "replicagroups",
    }, "of kinds that others have, only Berth's"


async def test_where_the_kinds_are_gone_already_what_is_left_is_waited_for() -> None:
    server = Server(unknown=True)
    assert (await told(server))[0].startswith("1 services (serving/llama); 1 configmaps (serving/files); 5 pods")
    assert server.deleted == []


async def test_a_server_that_is_away_is_waited_for_and_it_is_said_once() -> None:
    answers = iter([True, True])

    def trouble() -> None:
        if next(answers, False):
            raise Transient("list llmdeployments: no answer in time")

    words = await told(Server(trouble=trouble))
    assert words[0] == "waiting for the API server: list llmdeployments: no answer in time"
    assert sum(line.startswith("waiting") for line in words) == 1
