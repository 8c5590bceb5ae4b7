"""The process that is a local cluster: control plane, nodes, Services, operator. With it everything ends.

    python -m berth.local.supervisor FOLDER LOCK-DESCRIPTOR

Started by `cluster.up`, which holds standard input: when that ends before it has said KEEP, so does the cluster, so
that nothing outlives a starter that was killed. Standard output carries progress as JSON lines until the cluster is
ready. Children die with us by the kernel's hand, pods with their children; what a SIGKILL leaves is the janitor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.aio.client import ApiClient

from berth.api import crd
from berth.core.discovery import discover
from berth.errors import BerthError
from berth.kube import auth
from berth.kube.client import KubeClient
from berth.kube.kinds import CUSTOM_RESOURCE_DEFINITION, NODE, POD, SERVICE, Object
from berth.kube.reflector import Reflector
from berth.local import binaries, control, names, sandbox, triton_env
from berth.local.addresses import LoopbackNetwork
from berth.local.config import ZONES, Config
from berth.local.controlplane import ENDPOINT_CONTROLLERS, PROGRAMS, ControlPlane
from berth.local.kubelet.container import Image
from berth.local.kubelet.node import Ground, LocalNode, NodeSpec
from berth.local.kwok import Kwok, gpu_node
from berth.local.processes import ChildProcess
from berth.local.services import ServiceProxies

_log = logging.getLogger(__name__)

RESTART_PAUSE: Final = 1.0
REACHABLE_EVERY: Final = 2.0
POLL: Final = 0.05
OPERATOR_PORT: Final = 8080
START_LIMIT: Final = 60.0


class Supervisor:
    """One cluster in `folder`. `run` returns when it was asked to stop, or raises what broke."""

    def __init__(self, folder: Path, lock: int, say: Any) -> None:
        self.folder = folder
        self.config = Config.read(folder)
        self.stop = asyncio.Event()
        self._lock = lock
        self._say = say
        self._started = time.monotonic()
        self._nodes: dict[str, LocalNode] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._services: Reflector
        self._pods: Reflector
        self._proxies: ServiceProxies
        self._network: LoopbackNetwork
        self._operator: ChildProcess | None = None
        self._control_plane = ControlPlane(
            folder / "control-plane",
            binaries.provide(PROGRAMS),
            disabled_controllers=ENDPOINT_CONTROLLERS,
            node_monitor_period=1,
            node_monitor_grace_period=self.config.node_silence,
        )

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            self._network = LoopbackNetwork.claim()
            memory = sandbox.SHARED_MEMORY / f"berth-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}"
            stack.callback(self._start_janitor(memory).stdin.close)  # type: ignore[union-attr]
            stack.callback(self._end_children)
            await self._control_plane.start_api()
            api = await stack.enter_async_context(
                ApiClient(await auth.configuration(str(self._control_plane.kubeconfig)))
            )
            client = KubeClient(api)
            await _install_crds(client)
            await self._control_plane.start_controllers()
            self._say(f"control plane: Kubernetes {binaries.KUBERNETES_VERSION} on {self._control_plane.url}")
            stack.push_async_callback(self._cancel_tasks)
            self._route(client)
            self._start_operator()
            await self._start_nodes(api, client, memory)
            await self._make_pools(client)
            await self._operator_ready()
            await stack.enter_async_context(control.serve(self.folder, self._handle))
            self._say("", ready=True)
            self._spawn(self._stay_reachable(), "reachable")
            await self._until_stopped()

    async def _until_stopped(self) -> None:
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait([stopped, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in self._tasks:
            if task.done():
                task.result()

    async def _stay_reachable(self) -> None:
        """A cluster whose folder was removed can be found by nobody, `down` included: it ends."""
        while True:
            await asyncio.sleep(REACHABLE_EVERY)
            if not (self.folder / control.SOCKET).exists():
                raise BerthError(f"{self.folder} was removed: nobody can reach this cluster any more")

    # --- parts --------------------------------------------------------------------------------------------------------

    def _start_janitor(self, memory: Path) -> subprocess.Popen[bytes]:
        """It gets the lock and the network as well, so that neither is free before it is done."""
        return subprocess.Popen(
            [sys.executable, "-m", "berth.local.janitor", str(self.folder), str(memory), self._network.prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(self._lock, self._network.fileno()),
            start_new_session=True,
        )

    def _route(self, client: KubeClient) -> None:
        """Services and names follow what the API server has."""
        self._services = Reflector(client, SERVICE, on_change=lambda _old, _new: self._changed.set())
        self._pods = Reflector(client, POD, on_change=lambda _old, _new: self._changed.set())
        self._proxies = ServiceProxies(self._network.services())
        self._spawn(self._services.run(), "services")
        self._spawn(self._pods.run(), "pods")
        self._spawn(self._keep_routes(), "routes")

    async def _keep_routes(self) -> None:
        await self._services.synced.wait()
        await self._pods.synced.wait()
        try:
            while True:
                services, pods = self._services.store.all(), self._pods.store.all()
                await self._proxies.sync(services, pods)
                names.write_hosts(self.folder / "hosts", names.hosts(pods, services, self._proxies.address))
                await self._changed.wait()
                self._changed.clear()
        finally:
            self._proxies.close()

    async def _start_nodes(self, api: ApiClient, client: KubeClient, memory: Path) -> None:
        triton = triton_env.find()
        if triton is None:
            raise BerthError("no Triton server: berth local up makes it")
        ground = Ground(
            folder=self.folder,
            memory=memory,
            storage=Path(self.config.storage) if self.config.storage else None,
            image=Image(triton.environment(), {"/opt/tritonserver": triton.home}),
            isolation=sandbox.isolation(),
            network=self._network,
            hosts=self.folder / "hosts",
        )
        members = [(pool, number) for pool in self.config.pools for number in range(pool.nodes)]
        for index, (pool, number) in enumerate(members, start=1):
            zone = ZONES[number % len(ZONES)]
            spec = NodeSpec(f"{pool.name}-{number + 1}", index, pool.product, pool.gpus, zone)
            self._nodes[spec.name] = LocalNode(spec, ground, api)
        for name, node in self._nodes.items():
            self._spawn(node.run(), name)
        if self.config.simulated:
            await self._start_simulated_nodes(client)
        for node in self._nodes.values():
            await self._first(node.registered.wait())
        gpus = sum(pool.nodes * pool.gpus for pool in self.config.pools)
        self._say(f"nodes: {len(self._nodes)} with {gpus} GPUs (simulated), Triton from {triton.root}")

    async def _start_simulated_nodes(self, client: KubeClient) -> None:
        kwok = Kwok(self._control_plane.kubeconfig, self._control_plane.directory)
        kwok.start()
        self._spawn(_fail_when_ended(kwok), "kwok")
        for pool in self.config.simulated:
            for number in range(pool.nodes):
                zone = ZONES[number % len(ZONES)]
                name = f"{pool.name}-{number + 1}"
                await client.create(gpu_node(name, product=pool.product, gpus=pool.gpus, zone=zone))
        self._say(f"simulated nodes: {sum(pool.nodes for pool in self.config.simulated)}")

    async def _make_pools(self, client: KubeClient) -> None:
        """What `berth pools discover` proposes for these nodes."""
        found = discover((await client.list(NODE)).items).pools
        for pool in found:
            await client.create(dict(pool.manifest))
        each = [f"{pool.manifest['metadata']['name']} ({pool.manifest['spec']['gpu']})" for pool in found]
        self._say(f"pools: {', '.join(each)}")

    def _start_operator(self) -> None:
        """Early, since it takes seconds to load."""
        if not self.config.operator:
            return
        environment = {
            **os.environ,
            **self.config.settings,
            "BERTH_KUBECONFIG": str(self._control_plane.kubeconfig),
            "BERTH_LEASE_NAMESPACE": "kube-system",
            "BERTH_LISTEN": f"{self._network.control}:{OPERATOR_PORT}",
        }
        self._operator = ChildProcess(
            "operator",
            [sys.executable, "-m", "berth", "operator", "run"],
            directory=self.folder,
            log=self.folder / "logs" / "operator.log",
            environment=environment,
        )
        self._operator.start()

    async def _operator_ready(self) -> None:
        if self._operator is None:
            return
        page = f"http://{self._network.control}:{OPERATOR_PORT}/readyz"
        deadline = time.monotonic() + START_LIMIT
        while not await asyncio.to_thread(_answers, page):
            if not self._operator.running:
                raise self._operator.failure("ended before it was ready")
            if time.monotonic() > deadline:
                raise self._operator.failure(f"was not ready after {START_LIMIT:.0f} s")
            await asyncio.sleep(POLL)
        self._spawn(self._keep_operator(self._operator), "operator")
        self._say(f"operator: log in {self._operator.log}")

    async def _keep_operator(self, operator: ChildProcess) -> None:
        """As a Deployment would: started again whenever it ends."""
        while True:
            code = await operator.wait()
            _log.warning("the operator ended with code %s and is started again", code)
            await asyncio.sleep(RESTART_PAUSE)
            operator.start()

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _handle(self, request: dict[str, Any]) -> Any:
        match request:
            case {"do": "status"}:
                return self._status()
            case {"do": "stop"}:
                self.stop.set()
                return None
            case {
                "do": "log",
                "namespace": str(namespace),
                "pod": str(pod),
                "container": container,
                "previous": bool(p),
            }:
                return self._log_of(namespace, pod, container, p)
            case {"do": "node", "name": str(name), "action": str(action), **rest}:
                return self._act(name, action, rest)
        raise ValueError(f"unknown request {request.get('do')!r}")

    def _status(self) -> dict[str, Any]:
        return {
            "name": self.config.name,
            "folder": str(self.folder),
            "pid": os.getpid(),
            "since": round(time.monotonic() - self._started),
            "server": self._control_plane.url,
            "kubeconfig": str(self._control_plane.kubeconfig),
            "operator": None if self._operator is None else "running" if self._operator.running else "restarting",
            "nodes": [self._node_status(node) for node in self._nodes.values()],
            "services": self._proxies.describe(),
        }

    def _node_status(self, node: LocalNode) -> dict[str, Any]:
        spec = node.spec
        return {
            "name": spec.name,
            "product": spec.product,
            "zone": spec.zone,
            "address": node.address,
            "state": node.state,
            "gpus": node.gpus,
            "pods": [
                {
                    "namespace": worker.pod["metadata"]["namespace"],
                    "name": worker.pod["metadata"]["name"],
                    "address": worker.place.address,
                    "mark": worker.place.mark,
                    "memory": str(worker.place.folders.memory),
                }
                for worker in node.workers
            ],
        }

    def _log_of(self, namespace: str, pod: str, container: str | None, previous: bool) -> str:
        for node in self._nodes.values():
            if worker := node.worker(namespace, pod):
                return str(worker.log(container, previous))
        raise ValueError(f"no pod {pod} in namespace {namespace} runs on a local node")

    def _act(self, name: str, action: str, rest: dict[str, Any]) -> str:
        if name not in self._nodes:
            raise ValueError(f"no node {name}: use one of {', '.join(self._nodes)}")
        node = self._nodes[name]
        match action:
            case "silence":
                node.disconnect()
            case "kill":
                node.power_off()
            case "revive":
                node.power_on()
            case "gpus":
                node.set_unhealthy_gpus(int(rest["unhealthy"]))
            case _:
                raise ValueError(f"unknown action {action!r}")
        return node.state

    # --- plumbing -----------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _first(self, work: Coroutine[Any, Any, Any]) -> None:
        """Awaits `work`, or raises what ended one of our tasks."""
        awaited = asyncio.create_task(work)
        await asyncio.wait([awaited, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            if task.done():
                task.result()
        await awaited

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end_children(self) -> None:
        """At once: nothing of this cluster is needed any more."""
        for process in filter(None, [self._operator, *reversed(self._control_plane.processes)]):
            process.kill()


async def _install_crds(client: KubeClient) -> None:
    for text in crd.files().values():
        manifest: Object = yaml.safe_load(text)
        await client.apply(manifest, "berth-local")
    deadline = time.monotonic() + START_LIMIT
    while not all(map(_established, (await client.list(CUSTOM_RESOURCE_DEFINITION)).items)):
        if time.monotonic() > deadline:
            raise BerthError(f"the API server did not take the CRDs in {START_LIMIT:.0f} s")
        await asyncio.sleep(POLL)


def _established(definition: Object) -> bool:
    conditions = definition.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


async def _fail_when_ended(process: ChildProcess) -> None:
    await process.wait()
    raise process.failure("ended")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own operator on loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def main(folder: Path, lock: int) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    started = time.monotonic()

    def say(text: str, **more: Any) -> None:
        """A starter that has gone does not matter: the lifeline speaks for it."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"text": text, "after": time.monotonic() - started, **more}), flush=True)

    async def supervise() -> None:
        supervisor = Supervisor(folder, lock, say)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop.set)
        running = asyncio.create_task(supervisor.run())
        with _lifeline(supervisor.stop):
            stopped = asyncio.create_task(supervisor.stop.wait())
            await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not running.done():
                running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    try:
        asyncio.run(supervise())
    except BerthError as error:
        _log.error("%s", error)
        say(str(error), error=True)
        return 1
    return 0


@contextlib.contextmanager
def _lifeline(stop: asyncio.Event) -> Iterator[None]:
    """Sets `stop` when standard input ends without KEEP."""
    loop = asyncio.get_running_loop()

    def heard() -> None:
        loop.remove_reader(0)
        if os.read(0, 1) != control.KEEP:
            stop.set()

    loop.add_reader(0, heard)
    try:
        yield
    finally:
        loop.remove_reader(0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
