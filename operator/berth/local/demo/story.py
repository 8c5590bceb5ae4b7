"""The demonstration from the first line to the last: up, placed, serving, under load, hit, healed, and the figures."""

from __future__ import annotations

import asyncio
import collections
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.aio.client import ApiClient

from berth import labels
from berth.api.common import seconds
from berth.errors import BerthError
from berth.kube import auth
from berth.kube.client import KubeClient
from berth.kube.kinds import LLM_DEPLOYMENT, POD, REPLICA_GROUP, Object
from berth.kube.reflector import Reflector
from berth.local import cluster, control, sandbox
from berth.local.config import Config
from berth.local.demo import report, trace
from berth.local.demo.client import Outcome, Replay
from berth.local.screen import Screen, own_command
from berth.local.triton_env import CHECKOUT
from berth.serving.prober import TritonProber

SAMPLE: Final = CHECKOUT / "manifests" / "samples" / "llama-70b.yaml"
NAMESPACE: Final = "default"
SERVING_LIMIT: Final = 120.0
FAILURE_AT: Final = 40.0
"""Seconds into the replay: the queues are those of a running service by then."""
AFTERMATH: Final = 15.0
"""Seconds that count as the time of the failure."""
RATE_SECONDS: Final = 5
BEFORE, DURING, AFTER = "answered before the failure", f"in flight at it, or sent in {AFTERMATH:.0f}s", "sent later"


def run(name: str, *, keep: bool, screen: Screen) -> None:
    """Raises BerthError. The cluster ends with the demonstration unless `keep`."""
    screen.title("Llama-3.1-70B on two pools of simulated GPUs; Triton, Kubernetes, clients and failures are real")
    with cluster.up(Config(name), screen.step, screen.working) as started:
        asyncio.run(_Story(started.folder, name, screen).tell())
        if keep:
            started.keep()
    _say_what_next(name, keep, screen)


class _Story:
    def __init__(self, folder: Path, name: str, screen: Screen) -> None:
        self._folder = folder
        self._name = name
        self._screen = screen
        self._client: KubeClient
        self._deployment: Object = yaml.safe_load(SAMPLE.read_text())

    async def tell(self) -> None:
        kubeconfig = self._status()["kubeconfig"]
        async with ApiClient(await auth.configuration(kubeconfig)) as api:
            self._client = KubeClient(api)
            async with _watched(self._client) as groups:
                await self._apply()
                await self._serving(groups)
                replay = Replay(self._address(), trace.requests())
                killed_at = await self._under_load(replay, groups)
            await self._conclude(replay, killed_at)

    async def _apply(self) -> None:
        self._deployment["metadata"]["namespace"] = NAMESPACE
        await self._client.apply(self._deployment, "berth-demo")
        self._screen.step(f"applied {SAMPLE.relative_to(CHECKOUT)}")

    async def _serving(self, groups: _Groups) -> None:
        """Until the deployment says Ready."""
        allocations = self._deployment["spec"]["placement"]["fixed"]["allocations"]
        wanted = sum(allocation["groups"] for allocation in allocations)
        await groups.until(lambda: len(groups.leaders) == wanted, SERVING_LIMIT)
        for group, pod in sorted(groups.leaders.items()):
            spec = pod["spec"]
            self._screen.step(f"{group} serves on {spec['nodeName']}: a token came out of it")
        placement = (await self._read())["status"]["summary"]["placement"]
        self._screen.step(f"placed: {placement}; Service at {self._address()} (gRPC)")

    async def _under_load(self, replay: Replay, groups: _Groups) -> float:
        """Replays the trace and kills a server in the middle of it. The moment of that, on the replay's clock."""
        self._screen.step(
            f"replaying {len(replay.requests)} requests of the {trace.SOURCE}, {replay.connections} kept connections"
        )
        running = asyncio.create_task(replay.run())
        drawing = asyncio.create_task(self._draw(replay))
        try:
            await asyncio.sleep(FAILURE_AT)
            killed_at = await self._kill_a_server(replay, groups)
            await running
        finally:
            running.cancel()
            drawing.cancel()
            await asyncio.gather(running, drawing, return_exceptions=True)
        self._screen.step(f"replay ended: {replay.tokens} tokens")
        return killed_at

    async def _draw(self, replay: Replay) -> None:
        past = collections.deque([(0.0, 0)], maxlen=RATE_SECONDS)
        while True:
            await asyncio.sleep(1)
            now = replay.now()
            since, tokens = past[0]
            rate = (replay.tokens - tokens) / (now - since)
            past.append((now, replay.tokens))
            done = f"{len(replay.outcomes)} answered, {replay.in_flight} in flight, {rate:.0f} tokens/s"
            self._screen.bar(now / replay.requests[-1].at, done)

    async def _kill_a_server(self, replay: Replay, groups: _Groups) -> float:
        """SIGKILL to the Triton of the first group, and what Berth makes of it."""
        group, pod = min(groups.leaders.items())
        in_flight = await _in_flight(pod["status"]["podIP"])
        process = _server_of(self._status(), pod)
        killed_at = replay.now()
        sandbox.send([process], signal.SIGKILL)
        self._screen.fault(f"killed the Triton server of {group} (process {process}), {in_flight} requests in flight")
        await groups.until(lambda: group not in groups.leaders, SERVING_LIMIT)
        self._screen.step(f"{group} gets no new requests: traffic cut after {replay.now() - killed_at:.1f}s")
        await groups.until(lambda: group in groups.leaders and groups.states.get(group) == "Serving", SERVING_LIMIT)
        self._screen.step(f"{group} serves again after {replay.now() - killed_at:.1f}s")
        return killed_at

    async def _conclude(self, replay: Replay, killed_at: float) -> None:
        objectives = self._deployment["spec"]["objectives"]
        wanted = seconds(objectives["timeToFirstToken"]["p95"]), seconds(objectives["timePerOutputToken"]["p95"])

        def part(outcome: Outcome) -> str:
            if outcome.last is not None and outcome.last < killed_at:
                return BEFORE
            return DURING if outcome.sent < killed_at + AFTERMATH else AFTER

        parts = [(name, [each for each in replay.outcomes if part(each) == name]) for name in (BEFORE, DURING, AFTER)]
        self._screen.plain()
        self._screen.plain("measured at the clients, on simulated hardware:")
        for line in report.latency_table(parts, wanted):
            self._screen.plain(f"  {line}")
        self._screen.plain(f"what clients noticed: {report.noticed(replay.outcomes)}")
        for each in [each for each in replay.outcomes if each.error][:3]:
            self._screen.plain(f"  failed: {each.error}")
        summary = (await self._read())["status"]["summary"]
        self._screen.plain(f"{self._deployment['metadata']['name']} says: {summary['ready']}, {summary['message']}")

    async def _read(self) -> Object:
        return await self._client.get(LLM_DEPLOYMENT, NAMESPACE, self._deployment["metadata"]["name"])

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = control.ask(self._folder, {"do": "status"})
        return found

    def _address(self) -> str:
        """Where clients reach the deployment's Service."""
        for service in self._status()["services"]:
            if service["name"] == self._deployment["metadata"]["name"]:
                return f"{service['address']}:{labels.PORT_GRPC}"
        raise BerthError("the deployment has no Service: this is a bug in Berth")


class _Groups:
    """What the cluster says about groups, kept up to date: `states`, and `leaders` that get requests."""

    def __init__(self, groups: Reflector, pods: Reflector, changed: asyncio.Event) -> None:
        self._groups = groups
        self._pods = pods
        self._changed = changed

    @property
    def states(self) -> dict[str, str]:
        """By group: of its newest incarnation."""
        ordered = sorted(self._groups.store.all(), key=lambda each: int(each["spec"]["incarnation"]))
        return {each["spec"]["group"]: each.get("status", {}).get("state", "") for each in ordered}

    @property
    def leaders(self) -> dict[str, Object]:
        """By group: the pod that the Service sends requests to."""
        return {
            pod["metadata"]["labels"][labels.GROUP_LABEL]: pod
            for pod in self._pods.store.all()
            if pod["metadata"]["labels"].get(labels.SERVING) == "true"
            and any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])
        }

    async def until(self, so: Callable[[], bool], limit: float) -> None:
        """Raises BerthError if it is not so after `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                while not so():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise BerthError(f"the groups did not get there in {limit:.0f} s: {self.states}") from None


@asynccontextmanager
async def _watched(client: KubeClient) -> AsyncIterator[_Groups]:
    changed = asyncio.Event()

    def wake(_old: Object | None, _new: Object | None) -> None:
        changed.set()

    groups = Reflector(client, REPLICA_GROUP, namespace=NAMESPACE, on_change=wake)
    pods = Reflector(
        client, POD, namespace=NAMESPACE, label_selector=f"{labels.MEMBER}={labels.LEADER}", on_change=wake
    )
    tasks = [asyncio.create_task(reflector.run()) for reflector in (groups, pods)]
    try:
        yield _Groups(groups, pods, changed)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _in_flight(address: str) -> int:
    prober = TritonProber()
    try:
        return (await prober.progress(address)).in_flight
    finally:
        await prober.close()


def _server_of(status: dict[str, Any], pod: Object) -> int:
    """Process of the Triton server in a pod."""
    name = pod["metadata"]["name"]
    found = next(each for node in status["nodes"] for each in node["pods"] if each["name"] == name)
    for process in sandbox.marked(found["mark"]):
        if Path(f"/proc/{process}/comm").read_text().strip() == "tritonserver":
            return process
    raise BerthError(f"no Triton server runs in pod {name}")


def _say_what_next(name: str, keep: bool, screen: Screen) -> None:
    screen.plain()
    screen.plain("next:")
    if not keep:
        screen.plain(f"  {'make demo KEEP=1':<48} the same, and the cluster stays for you")
        screen.plain(f"  {own_command() + ' local up':<48} an empty cluster, for your own experiments")
        return
    berth = own_command()
    for command, why in (
        (f"{berth} local kubectl --name {name} get llmd,pods", "what runs"),
        (f"{berth} local status --name {name}", "nodes, and addresses of Services"),
        (f"{berth} local nodes --name {name} kill h100-1", "take a node's power, and watch"),
        (f"{berth} local down --name {name}", "end it all"),
    ):
        screen.plain(f"  {command:<60} {why}")
