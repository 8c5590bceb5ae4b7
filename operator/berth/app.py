"""The composition root: what is built from what, in which order it starts and stops.

Start: client, CRD check, local copies (warm on standbys too), Lease, queue, kopf last. The first part that ends, ends
the process. So does losing the Lease; there is no way back to being a standby.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import kopf
from kubernetes.aio.client import ApiClient, Configuration

from berth.controller import nodewatch
from berth.controller.arbiter import Arbiter
from berth.controller.copies import Copies, key_of
from berth.controller.engine_files import engine_files
from berth.controller.execute import Executor
from berth.controller.measuring import Measuring
from berth.controller.nodewatch import NodeWatch
from berth.controller.reconcile import Reconciler
from berth.controller.shard import Shard
from berth.controller.world import Key, World, pool_key
from berth.core.budgets import NamespaceCaps
from berth.core.disruption import Notices
from berth.core.progress import BUSY_SECONDS, PROGRESS_SECONDS
from berth.core.wanted import Defaults
from berth.errors import BerthError, Transient
from berth.handlers import watch_deployments
from berth.kube import auth, clock
from berth.kube.client import KubeClient
from berth.kube.elector import Elector
from berth.kube.errors import NotFound
from berth.kube.events import EventRecorder
from berth.kube.kinds import GPU_POOL, LLM_DEPLOYMENT, REPLICA_GROUP, Object
from berth.kube.limits import Limits
from berth.kube.workqueue import WorkQueue
from berth.labels import GROUP
from berth.live import Live, serve_live
from berth.measurements import Measurements
from berth.metrics import Metrics
from berth.page import serve_page
from berth.serving.monitor import Monitor
from berth.serving.prober import Prober, TritonProber
from berth.serving.reader import LEAST_STALE_SECONDS, STALE_READINGS, Reader
from berth.serving.sources import Pages, Prometheus, Source
from berth.settings import Settings
from berth.standing import Standing

_log = logging.getLogger(__name__)

IMAGES = {
    "pytorch": "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
    "tensorrt": "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
    "simulated": "berth-triton-simulated:0.1.0",
}
"""Engine image by backend, for deployments that name none. 26.07 carries TensorRT-LLM 1.2.1."""

CAPACITY_SETTLE_SECONDS = 0.2
"""Many pods and nodes change at once: those that wait for capacity ask once."""
STALE_WATCHES = 3
"""A copy that heard nothing for so many lengths of a watch is not what the cluster is: this replica is not ready."""
START_RETRY_SECONDS = 2.0
"""Time between two attempts to reach the API server at the start."""
BUSY_KEYS = 2
"""So many keys per worker, waiting or worked on, are a crowd."""
COLLECT = (5_000, 10, 100)
"""Thresholds of Python's garbage collector. The local copies are trees without cycles, freed without it. A full
collection walks all of them while everything waits, and came every few seconds while they grow, as Python sets it."""
POOL_STATUS_SECONDS = 1.0
"""A pool's status is written at most this often."""


class App:
    """One operator process. `stop` ends it in order; `ready` is set once it works as the leader."""

    def __init__(
        self,
        settings: Settings,
        *,
        prober: Prober | None = None,
        source: Source | None = None,
        time_of_day: Callable[[], float] = time.time,
        configuration: Configuration | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.stop = asyncio.Event()
        self.ready = asyncio.Event()
        self._prober = prober or TritonProber()
        self._source = source or _source(settings, time_of_day)
        self._time_of_day = time_of_day
        self._configuration = configuration
        self._queue: WorkQueue[Key]
        self._reconciler: Reconciler
        self._world: World
        self._copies = Copies(clock.now)
        self._shard = Shard(settings.shard_selector)
        self._settling: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Work until `stop` is set; raises BerthError when the cluster or the Lease says that it cannot go on."""
        gc.set_threshold(*COLLECT)
        async with AsyncExitStack() as stack:
            settings = self.settings
            configuration = self._configuration or await auth.configuration(settings.kubeconfig, settings.context)
            api = await stack.enter_async_context(ApiClient(configuration))
            elector = Elector(
                KubeClient(api, metrics=self.metrics),
                settings.lease_namespace,
                settings.lease_name,
                f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
                duration=settings.lease_duration,
                renew_deadline=settings.lease_renew_deadline,
                retry=settings.lease_retry,
                metrics=self.metrics,
            )
            limits = Limits(
                per_second=settings.api_rate,
                burst=settings.api_burst,
                parallel=settings.api_parallel,
                request_seconds=settings.api_timeout,
            )
            client = KubeClient(api, limits=limits, before_write=elector.check, metrics=self.metrics)
            self._build(client)
            await serve_page(stack, settings.listen_address, self.metrics, self._healthy, self._why_not_ready)
            if settings.live_address is not None:
                await serve_live(stack, settings.live_address, self._live, self.ready.is_set)
            await self._work(client, elector, configuration)

    def _build(self, client: KubeClient) -> None:
        settings = self.settings
        recorder = EventRecorder(client, "berth-operator", socket.gethostname(), metrics=self.metrics)
        self._world = World(
            client,
            self._wake,
            self._capacity_changed,
            namespace=settings.namespace,
            watch_seconds=settings.watch,
            relist_seconds=settings.relist,
            metrics=self.metrics,
        )
        notices = Notices(settings.list_of("notice_taints"), settings.list_of("notice_conditions"))
        self._monitor = Monitor(self._prober, lambda key: self._wake(key), self._time_of_day, settings.canary_interval)
        standing = Standing()
        self.metrics.registry.register(standing)
        self._watch = NodeWatch(
            client,
            self._world,
            self._monitor.reach,
            self._wake,
            clock.now,
            self._time_of_day,
            settings.fault_rules,
            nodewatch.Limits(settings.node_late, settings.node_silent, settings.gpu_fault_hold, settings.node_stable),
            self.metrics,
        )
        self._reader = Reader(
            self._source,
            lambda key: self._measuring.news(key),
            self._time_of_day,
            settings.metrics_interval,
            settings.metrics_warm_up,
            settings.decision_hour,
        )
        self.metrics.registry.register(Measurements(self._reader))
        self._live = Live(self._reader, settings.live_service)
        self._measuring = Measuring(self._reader, self._wake, self._time_of_day, self._live)
        arbiter = Arbiter(
            client,
            self._world,
            clock.now,
            lambda node: self._watch.why_avoided(node) or notices.of(node),
            lambda node, at: self._watch.heard_since(node, at),
            NamespaceCaps(settings.namespace_groups, settings.namespace_gpus),
        )
        self._reconciler = Reconciler(
            client,
            self._world,
            arbiter,
            Executor(client, arbiter, self._prober, self._time_of_day),
            self._monitor,
            self._watch,
            self._measuring,
            recorder,
            Defaults(engine_files(), IMAGES, notices),
            self._time_of_day,
            settings.resync,
            self.metrics,
            self._copies,
            self._shard,
            standing,
            lambda: BUSY_SECONDS if len(self._queue) > BUSY_KEYS * settings.workers else PROGRESS_SECONDS,
        )
        self._recorder = recorder
        self._queue = WorkQueue(self._reconciler.reconcile, workers=settings.workers, metrics=self.metrics)

    async def _work(self, client: KubeClient, elector: Elector, configuration: Configuration) -> None:
        """Copies first, then the Lease, then the work."""
        background: list[asyncio.Task[None]] = []
        try:
            await self._unless_stopped(_check_crds(client, self.settings.namespace), background)
            background.append(asyncio.create_task(self._world.run(), name="copies"))
            await self._unless_stopped(self._world.synced(), background)
            background.append(asyncio.create_task(self._watch.run(), name="nodes"))
            await self._unless_stopped(elector.acquire(), background)
            _log.info("leading as %s", elector.identity)
            background += [
                asyncio.create_task(elector.hold(), name="lease"),
                asyncio.create_task(self._recorder.run(), name="events"),
                asyncio.create_task(self._queue.run(), name="queue"),
                asyncio.create_task(self._reader.run(), name="metrics"),
            ]
            for pool in self._world.pools.store.all():
                self._wake(pool_key(pool["metadata"]["name"]))
            connection = partial(_connection, configuration)
            background.append(
                asyncio.create_task(watch_deployments(self._told, connection, self.settings.namespace), name="kopf")
            )
            self.ready.set()
            await self._unless_stopped(asyncio.Event().wait(), background)
        except _Stopped:
            _log.info("stopped")
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._monitor.close()
            await elector.release()

    async def _unless_stopped(self, work: object, background: list[asyncio.Task[None]]) -> None:
        """Await `work`; raises what ended a background task first, or _Stopped."""
        main = asyncio.ensure_future(work)  # type: ignore[call-overload]
        stopped = asyncio.create_task(self.stop.wait())
        try:
            done, _ = await asyncio.wait([main, stopped, *background], return_when=asyncio.FIRST_COMPLETED)
            for task in background:
                if task in done:
                    task.result()
                    raise BerthError(f"{task.get_name()} ended")
            if main in done:
                main.result()
            if stopped in done:
                raise _Stopped
        finally:
            main.cancel()
            stopped.cancel()
            await asyncio.gather(main, stopped, return_exceptions=True)

    def _told(self, deployment: Object, *, gone: bool) -> None:
        """A watch event: the echo of an own write wakes nobody."""
        key = key_of(deployment)
        ours = self._shard.told(key, deployment, gone=gone)
        if gone:
            self._copies.drop(key)
        news = gone or self._copies.tell(deployment)
        if ours and news:
            self._queue.add(key)

    def _wake(self, key: object) -> None:
        assert isinstance(key, Key)
        if key.kind == "GPUPool":
            self._queue.add_after(key, POOL_STATUS_SECONDS)
        elif not self._shard.ignores(key):
            self._queue.add(key)

    def _capacity_changed(self) -> None:
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(CAPACITY_SETTLE_SECONDS, self._tell_those_who_wait)

    def _tell_those_who_wait(self) -> None:
        self._settling = None
        for key in self._reconciler.waiting():
            self._wake(key)
        for pool in self._world.pools.store.all():
            self._wake(pool_key(pool["metadata"]["name"]))

    def _healthy(self) -> str:
        """Why this process should be restarted; empty while all is well."""
        if self.ready.is_set() and self._queue.lag() > 300:
            return f"no pass has ended for {self._queue.lag():.0f} s"
        return ""

    def _why_not_ready(self) -> str:
        """Why this replica could not take over now; empty when it could."""
        missing = [r.kind.name for r in self._world.reflectors if not r.synced.is_set()]
        if missing:
            return f"not yet listed: {', '.join(missing)}"
        longest = STALE_WATCHES * self.settings.watch
        stale = [r for r in self._world.reflectors if r.age() > longest]
        return "; ".join(f"{r.kind.name}: nothing heard for {r.age():.0f} s: {r.error}" for r in stale)


def _source(settings: Settings, time_of_day: Callable[[], float]) -> Source:
    """Where measurements come from: a Prometheus if one is named, else the leaders themselves."""
    spread = settings.metrics_interval / 2
    pages = Pages(time_of_day, min(5.0, max(1.0, settings.metrics_interval / 2)), spread)
    if not settings.prometheus:
        return pages
    return Prometheus(settings.prometheus, pages, max(LEAST_STALE_SECONDS, STALE_READINGS * settings.metrics_interval))


class _Stopped(Exception):
    """Somebody asked for an orderly end."""


async def _check_crds(client: KubeClient, namespace: str) -> None:
    """Returns once each kind was asked for; an API server that does not answer is waited for, not run away from."""
    for kind in (LLM_DEPLOYMENT, REPLICA_GROUP, GPU_POOL):
        while True:
            try:
                await client.newest_version(kind, (namespace or None) if kind.namespaced else None)
                break
            except NotFound:
                raise BerthError(
                    f"the CustomResourceDefinition {kind.plural}.{GROUP} is not installed: kubectl apply -f crds/"
                ) from None
            except Transient as error:
                _log.warning("waiting for the API server: %s", error)
                await asyncio.sleep(error.retry_after or START_RETRY_SECONDS)


async def _connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """kopf's credentials from the client's: token or client certificate, refreshed at each login."""
    token = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization") or ""
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        scheme="Bearer" if token else None,
        token=token.removeprefix("Bearer ").removeprefix("bearer ") or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        default_namespace="default",
    )
