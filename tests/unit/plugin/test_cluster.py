"""What commands say of a cluster that does not answer as hoped, and how they find the leader's page."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from berth.cli import main
from berth.cli.kubectl.cluster import LEADER_ATTEMPTS, Cluster, Told, explained
from berth.cli.kubectl.completion import SHELLS
from berth.errors import BerthError, Transient
from berth.kube.errors import Forbidden, NotFound, TooManyRequests, error_for
from berth.live import NOT_LEADING
from tests.unit.plugin import cases


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Told("all there is"), "all there is"),
        (Forbidden("no", verb="list", resource="llmdeployments"), "you may not list llmdeployments here: .* role view"),
        (Forbidden("no", verb="patch", resource="llmdeployments"), "--clusterrole=edit"),
        (NotFound("list /apis/berth.dev/v1alpha1/llmdeployments: 404 404 page not found"), "install Berth with helm"),
        (NotFound('patch /apis/berth.dev/x: 404 llmdeployments.berth.dev "x" not found'), '"x" not found'),
        (error_for(401, b'{"message": "Unauthorized"}', {}, "get /x"), "log in again"),
        (Transient("get /x: no answer in time"), "the API server does not answer: get /x"),
        (BerthError("anything else"), "anything else"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else None,
)
def test_refusals_say_what_to_do(error: Exception, words: str) -> None:
    with pytest.raises(click.ClickException, match=words), explained():
        raise error


class Proxy:
    """Answers as the API server's proxy of the Service does, one after the other."""

    def __init__(self, answers: Iterator[Callable[[], Any]]) -> None:
        self.answers = answers
        self.asked: list[Any] = []

    async def through_service(self, *asked: Any) -> Any:
        self.asked.append(asked)
        return next(self.answers)()


def fails(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


STANDBY = fails(error_for(503, f"{NOT_LEADING}\n".encode(), {}, "get /x"))


def ask(*answers: Callable[[], Any], live: str = "berth-system/berth-live") -> tuple[dict[str, Any], list[str], Proxy]:
    proxy, missing = Proxy(iter(answers)), list[str]()
    found = cases.healthy()
    found["status"]["live"] = live
    cluster = Cluster(proxy, "serving")  # type: ignore[arg-type]
    return asyncio.run(cluster.live([found], missing)), missing, proxy


def test_a_standby_or_a_busy_page_is_asked_again_until_the_leader_answers() -> None:
    busy = fails(TooManyRequests("get /x: 429 too many ask at once"))
    told, missing, proxy = ask(STANDBY, busy, STANDBY, lambda: {"deployments": [cases.LIVE]})
    assert (told, missing) == ({cases.UID: cases.LIVE}, [])
    assert proxy.asked == [("berth-system", "berth-live", "live", "/live", [("uid", cases.UID)])] * 4


def test_without_a_leader_it_ends_and_says_why() -> None:
    told, missing, proxy = ask(*itertools.repeat(STANDBY, 2 * LEADER_ATTEMPTS))
    assert told == {}
    assert len(proxy.asked) == LEADER_ATTEMPTS
    assert NOT_LEADING in missing[0]


@pytest.mark.parametrize("live", ["", "x", "a/b/c", "../secrets", "a/../../nodes", "A/b", "a/b:c"])
def test_nothing_in_status_becomes_another_path(live: str) -> None:
    told, missing, proxy = ask(live=live)
    assert (told, missing, proxy.asked) == ({}, ["the operator serves none"], [])


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    given = CliRunner().invoke(main, ["status", "x", "--kubeconfig", str(tmp_path / "none")])
    assert given.exit_code == 1
    assert f"there is no kubeconfig {tmp_path / 'none'}; give --kubeconfig and --context" in given.output


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_its_completion(shell: str) -> None:
    given = CliRunner().invoke(main, ["completion", shell])
    assert given.exit_code == 0, given.output
    assert "_BERTH_COMPLETE" in given.output


def test_kubectl_is_given_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from berth.cli.kubectl.completion import kubectl_complete

    for words, wanted in ((["fail"], "failover"), (["move", "x", "--t"], "--to"), ([""], "support-bundle")):
        monkeypatch.setattr("sys.argv", ["kubectl_complete-berth", *words])
        kubectl_complete()
        lines = capsys.readouterr().out.splitlines()
        assert wanted in {line.partition("\t")[0] for line in lines}
        assert lines[-1] == ":4"
