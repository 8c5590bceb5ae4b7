"""The life of a pod: real processes, a pretended API server."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from berth.errors import Transient
from berth.kube.kinds import Object
from berth.local import sandbox
from berth.local.kubelet.container import Image, Place
from berth.local.kubelet.pod import PodWorker
from berth.local.kubelet.volumes import PodFolders
from tests.support.cluster import eventually
from tests.unit.local.kubelet_api import FakeApi, pod

SLEEPS = "import signal; signal.signal(15, lambda *_: exit('bye')); print('up', flush=True); signal.pause()"
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"


def runs(body: str, **container: Any) -> dict[str, Any]:
    return {"command": [sys.executable, "-c", body], **container}


def checks(body: str, **probe: Any) -> dict[str, Any]:
    return {"exec": {"command": [sys.executable, "-c", body]}, "periodSeconds": 0.05, "timeoutSeconds": 10, **probe}


class Node:
    """What a worker needs of its node."""

    def __init__(self, folder: Path, isolation: tuple[str, ...]) -> None:
        self.folder = folder
        self.mark = f"{folder}/uid"
        self.isolation = isolation
        self.released = 0

    def release(self) -> None:
        self.released += 1

    def place(self) -> Place:
        return Place(
            address="127.0.0.1",
            host_address="127.0.0.1",
            folders=PodFolders(self.folder / "disk", self.folder / "memory", None),
            image=Image({"PATH": "/usr/bin:/bin"}, {}),
            hosts_file=self.folder / "hosts",
            mark=self.mark,
            isolation=self.isolation,
        )

    @asynccontextmanager
    async def running(
        self, wanted: Object, turn: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
    ) -> AsyncIterator[tuple[FakeApi, PodWorker]]:
        api = FakeApi(wanted)
        worker = PodWorker(
            await api.get_pod(),
            self.place(),
            api,  # type: ignore[arg-type]
            turn=turn,
            health=list,
            finished=self.release,
            first_backoff=0.2,
        )
        task = asyncio.create_task(worker.run())
        try:
            yield api, worker
        finally:
            worker.vanished()
            await asyncio.wait_for(task, 10)
            assert sandbox.marked(self.mark) == []
            assert not self.place().folders.disk.exists()


@pytest.fixture(params=["namespaces", "process group"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Node:
    isolation = sandbox.isolation() if request.param == "namespaces" else ()
    if request.param == "namespaces" and not isolation:
        pytest.skip("this kernel permits no namespaces")
    return Node(tmp_path, isolation)


def delete(api: FakeApi, worker: PodWorker, grace: int) -> None:
    """What the API server does on DELETE: marks the pod, and the node hears of it."""
    new = {**api.pod, "metadata": {**api.pod["metadata"]}}
    new["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace}
    api.replace(new)
    worker.update(new)


async def is_up(worker: PodWorker) -> None:
    """The program has installed its signal handler and said so."""

    async def says_so() -> bool:
        log = worker.log(None, previous=False)
        return log.exists() and "up" in log.read_text()

    await eventually(says_so)


def ready(api: FakeApi) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in api.pod["status"]["conditions"])


async def test_a_pod_without_probes_is_ready_once_it_runs(node: Node) -> None:
    async with node.running(pod(runs(SLEEPS))) as (api, worker):
        await api.until(lambda: ready(api))
        assert api.pod["status"]["phase"] == "Running"
        assert api.pod["status"]["podIP"] == "127.0.0.1"
        assert api.container["state"]["running"]["startedAt"]
        assert {each["type"] for each in api.pod["status"]["conditions"]} >= {"PodScheduled", "Initialized"}
        assert sandbox.marked(node.mark)
        assert worker.log(None, previous=False).exists()


async def test_a_deleted_pod_says_goodbye_and_its_object_goes_when_nothing_runs_any_more(node: Node) -> None:
    async with node.running(pod(runs(SLEEPS))) as (api, worker):
        await is_up(worker)
        delete(api, worker, grace=5)
        await api.until(lambda: not api.objects)
        last = api.history[-1]["containerStatuses"][0]["state"]["terminated"]
        assert (last["exitCode"], api.history[-1]["phase"]) == (1, "Failed")
        assert sandbox.marked(node.mark) == []


async def test_one_that_does_not_listen_is_killed_when_its_grace_is_over(node: Node) -> None:
    async with node.running(pod(runs(DEAF))) as (api, worker):
        await is_up(worker)
        delete(api, worker, grace=60)
        delete(api, worker, grace=0)  # the shorter grace wins
        await api.until(lambda: not api.objects)
        assert api.history[-1]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 128 + signal.SIGKILL


@pytest.mark.parametrize("lives", [0, 1])
async def test_one_that_is_deleted_while_it_starts_ends_as_soon_as_it_listens(node: Node, lives: int) -> None:
    """PID 1 of a namespace never hears of a signal that comes before its handler is there."""
    late = "import os, time; os.path.exists('ran') or (open('ran', 'w'), exit(3)); time.sleep(1)\n" + SLEEPS
    body = late if lives else "import time; time.sleep(1)\n" + SLEEPS
    async with node.running(pod(runs(body))) as (api, worker):
        await api.until(lambda: api.container.get("restartCount") == lives and "running" in api.container["state"])
        delete(api, worker, grace=600)
        await api.until(lambda: not api.objects, seconds=60)
        code = api.history[-1]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
        assert code == (1 if node.isolation else 128 + signal.SIGTERM)


async def test_the_hook_runs_before_the_signal(node: Node, tmp_path: Path) -> None:
    hook = {"preStop": checks(f"open({str(tmp_path / 'hook')!r}, 'w').write('ran')")}
    body = SLEEPS.replace("exit('bye')", f"exit(open({str(tmp_path / 'hook')!r}).read())")
    async with node.running(pod(runs(body, lifecycle=hook, terminationMessagePolicy="FallbackToLogsOnError"))) as (
        api,
        worker,
    ):
        await is_up(worker)
        delete(api, worker, grace=20)
        await api.until(lambda: not api.objects)
        assert api.history[-1]["containerStatuses"][0]["state"]["terminated"]["message"] == "up\nran"


async def test_a_container_that_ends_is_started_at_once_then_after_a_back_off(node: Node) -> None:
    async with node.running(pod(runs("raise SystemExit(3)"))) as (api, _):
        await api.until(lambda: api.container.get("restartCount", 0) >= 2)
        reasons = [each["containerStatuses"][0]["state"].get("waiting", {}).get("reason") for each in api.history]
        assert "CrashLoopBackOff" in reasons
        assert api.container["lastState"]["terminated"]["exitCode"] == 3
        assert api.pod["status"]["phase"] == "Running"
        assert node.released == 0


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (4, "Failed")])
async def test_with_policy_never_the_end_is_the_end_and_what_it_held_is_free(node: Node, code: int, phase: str) -> None:
    async with node.running(pod(runs(f"raise SystemExit({code})"), restartPolicy="Never")) as (api, worker):
        await api.until(lambda: api.pod["status"]["phase"] == phase)
        assert api.container["restartCount"] == 0
        assert node.released == 1
        delete(api, worker, grace=30)
        await api.until(lambda: not api.objects)


async def test_a_signal_shows_as_128_and_its_number_with_the_end_of_the_log(node: Node) -> None:
    body = "import os; print('last words', flush=True); os.kill(os.getpid(), 9)"
    if node.isolation:
        body = "import os, subprocess, sys; print('last words', flush=True); sys.exit(137)"  # PID 1 cannot kill itself
    wanted = pod(runs(body, terminationMessagePolicy="FallbackToLogsOnError"), restartPolicy="Never")
    async with node.running(wanted) as (api, _):
        await api.until(lambda: api.pod["status"]["phase"] == "Failed")
        end = api.container["state"]["terminated"]
        assert (end["exitCode"], end["message"]) == (137, "last words")


async def test_a_message_that_was_written_wins_over_the_log(node: Node) -> None:
    body = "import os, sys; open(os.environ['BERTH_TERMINATION_LOG'], 'w').write('written'); sys.exit('logged')"
    wanted = pod(runs(body, terminationMessagePolicy="FallbackToLogsOnError"), restartPolicy="Never")
    async with node.running(wanted) as (api, _):
        await api.until(lambda: api.pod["status"]["phase"] == "Failed")
        assert api.container["state"]["terminated"]["message"] == "written"


async def test_nothing_is_ready_before_the_startup_probe_and_then_readiness_decides(node: Node, tmp_path: Path) -> None:
    started, serving = tmp_path / "started", tmp_path / "serving"
    wanted = pod(
        runs(
            SLEEPS,
            startupProbe=checks(f"open({str(started)!r})", failureThreshold=1000),
            readinessProbe=checks(f"open({str(serving)!r})", failureThreshold=1),
        )
    )
    async with node.running(wanted) as (api, _):
        await api.until(lambda: "running" in api.container.get("state", {}))
        serving.touch()
        assert (api.container["started"], ready(api)) == (False, False)
        started.touch()
        await api.until(lambda: api.container["started"] and ready(api))
        serving.unlink()
        await api.until(lambda: not ready(api))
        assert api.container["restartCount"] == 0


@pytest.mark.parametrize("name", ["startupProbe", "livenessProbe"])
async def test_a_container_that_fails_its_probe_is_started_again(node: Node, name: str) -> None:
    failing = runs(DEAF, **{name: checks("exit(1)", failureThreshold=2)})
    async with node.running(pod(failing, terminationGracePeriodSeconds=0)) as (api, _):
        await api.until(lambda: api.container.get("restartCount") == 1)
        assert api.container["lastState"]["terminated"]["exitCode"] == 137


async def test_while_the_node_has_no_power_no_probe_is_put(node: Node) -> None:
    powered = asyncio.Event()
    probe = checks("exit(0)")
    async with node.running(pod(runs(SLEEPS, readinessProbe=probe)), turn=lambda: _none(powered)) as (api, _):
        await api.until(lambda: "running" in api.container.get("state", {}))
        await asyncio.sleep(0.2)
        assert not ready(api)
        powered.set()
        await api.until(lambda: ready(api))


async def _none(event: asyncio.Event) -> None:
    await event.wait()


@pytest.mark.parametrize(
    ("container", "spec", "reason", "message"),
    [
        ({}, {}, "CreateContainerConfigError", "give the container a command"),
        ({"command": ["/no/such/program"]}, {"isolated": False}, "CreateContainerError", "No such file"),
        (
            runs("", env=[{"name": "T", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}]),
            {},
            "CreateContainerConfigError",
            'secret "hf" not found',
        ),
        (runs(""), {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "FailedMount", "no hostPath volumes"),
    ],
)
async def test_what_keeps_a_container_from_starting_is_its_waiting_reason(
    node: Node, container: dict[str, Any], spec: dict[str, Any], reason: str, message: str
) -> None:
    if spec.pop("isolated", True) is False and node.isolation:
        pytest.skip("inside namespaces it is an exit code")
    async with node.running(pod(container, **spec)) as (api, worker):
        await api.until(lambda: api.container.get("state", {}).get("waiting", {}).get("reason") == reason)
        assert message in api.container["state"]["waiting"]["message"]
        assert api.pod["status"]["phase"] == "Pending"
        delete(api, worker, grace=30)
        await api.until(lambda: not api.objects)


async def test_a_post_start_hook_comes_before_probes_and_ends_the_container_when_it_fails(
    node: Node, tmp_path: Path
) -> None:
    mark = tmp_path / "greeted"
    greets = {"postStart": {"exec": {"command": [sys.executable, "-c", f"open({str(mark)!r}, 'w')"]}}}
    asks = checks(f"import os; raise SystemExit(not os.path.exists({str(mark)!r}))", failureThreshold=1)
    async with node.running(pod(runs(SLEEPS, lifecycle=greets, livenessProbe=asks))) as (api, _):
        await api.until(lambda: ready(api))
        assert mark.exists()
        assert api.container["restartCount"] == 0
    fails = {"postStart": {"exec": {"command": [sys.executable, "-c", "raise SystemExit(3)"]}}}
    async with node.running(pod(runs(SLEEPS, lifecycle=fails), restartPolicy="Never")) as (api, _):
        await api.until(lambda: api.pod["status"]["phase"] == "Failed")


async def test_what_local_nodes_cannot_do_is_said_instead_of_left_out(node: Node) -> None:
    async with node.running(pod(runs(SLEEPS), initContainers=[{"name": "first"}])) as (api, _):
        await api.until(lambda: "message" in api.container.get("state", {}).get("waiting", {}))
        assert "no init containers" in api.container["state"]["waiting"]["message"]


async def test_a_status_is_written_again_after_refusals_and_on_top_of_what_others_wrote(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berth.local.kubelet.pod.RETRY", 0.04)
    wanted = pod(runs(SLEEPS))
    async with node.running(wanted) as (api, _):
        api.refusals = [Transient("busy")]
        api.replace({**api.pod, "status": {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}})
        await api.until(lambda: api.pod["status"].get("phase") == "Running")
        assert "DisruptionTarget" in {each["type"] for each in api.pod["status"]["conditions"]}


async def test_children_that_left_their_group_end_with_the_container(node: Node) -> None:
    body = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
    )
    async with node.running(pod(runs(body), restartPolicy="Never")) as (api, _):
        await api.until(lambda: api.pod["status"]["phase"] == "Succeeded")
        assert sandbox.marked(node.mark) == []
