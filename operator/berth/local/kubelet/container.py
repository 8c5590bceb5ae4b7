"""One container of a pod: started, probed, stopped, started again; its log, its end and why.

A container's life is one `ChildProcess` after the other. Each has the pod's mark, a log file of its own and, where
possible, namespaces of its own (`sandbox`). Exec probes and hooks run beside it with its environment and paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from berth.engine import contract
from berth.local import sandbox
from berth.local.kubelet.environment import container_environment, expand_all
from berth.local.kubelet.objects import Missing, References
from berth.local.kubelet.paths import PathMap
from berth.local.kubelet.probes import Probe, ask_once
from berth.local.kubelet.volumes import PodFolders
from berth.local.processes import ChildProcess

MESSAGE_LIMIT: Final = 4096
LOG_MESSAGE_BYTES, LOG_MESSAGE_LINES = 2048, 80
"""Limits of termination messages, from the file and from the log: those of the kubelet."""
LONGEST_GREETING: Final = 600.0
"""Seconds for a postStart hook; kubelets wait for ever, and nobody sees why."""
SHORTEST_GRACE: Final = 2.0
"""Seconds left for SIGTERM after a preStop hook that took all the time."""

LISTENING_PERIOD: Final = 0.05
"""Seconds between two looks whether a process that has just been started has installed its signal handler."""


@dataclass(frozen=True)
class Image:
    """Stands for every image: programs by PATH, and folders that containers expect at fixed places."""

    environment: Mapping[str, str]
    folders: Mapping[str, Path]


@dataclass(frozen=True)
class Place:
    """Where a pod runs."""

    address: str
    host_address: str
    folders: PodFolders
    image: Image
    hosts_file: Path
    mark: str
    isolation: Sequence[str]

    @property
    def addresses(self) -> dict[str, str]:
        """By the names of the pod's status fields."""
        return {"podIP": self.address, "hostIP": self.host_address}


class Container:
    """A container of `pod` at `place`; `start` and `stop` any number of times."""

    def __init__(self, manifest: Mapping[str, Any], pod: Mapping[str, Any], place: Place) -> None:
        self.name: str = manifest["name"]
        self.address = place.address
        self._manifest = manifest
        self._pod = pod
        self._place = place
        self._folder: Path = place.folders.disk / "containers" / self.name
        self._message: Path = self._folder / "termination-message"
        self._environment: dict[str, str] = {}
        self._paths: PathMap
        self._process: ChildProcess | None = None
        self._asked_to_end = False

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, life: int, volumes: Mapping[str, Path], references: References) -> None:
        """Starts life number `life`. Raises Missing for what the container refers to, OSError for its command."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._message.write_text("")
        self._paths = PathMap(self._folder / "root", {**self._place.image.folders, **self._mounts(volumes)})
        given = await container_environment(self._manifest, self._pod, self._place.addresses, references)
        words = expand_all([*(self._manifest.get("command") or ()), *(self._manifest.get("args") or ())], given)
        if not self._manifest.get("command"):
            raise Missing("images are not there on local nodes: give the container a command")
        self._environment = self._surroundings() | {name: self._paths.rewrite(each) for name, each in given.items()}
        self._asked_to_end = False
        self._process = self._child(words, self.log(life), self._place.isolation)
        self._process.start()

    async def wait(self) -> int:
        """Exit code of this life, negative for a signal; nothing of it runs any more."""
        assert self._process is not None
        code = await self._process.wait()
        await asyncio.to_thread(sandbox.sweep, f"{self._place.mark}/{self.name}")
        sandbox.remove_regions(f"{self.address}_run-{self.name}_")
        return code

    @property
    def starts_at_once(self) -> bool:
        """Neither a postStart hook nor a startup probe stands before its being started."""
        return not self._lifecycle("postStart") and self.probe("startupProbe") is None

    async def greet(self) -> str:
        """postStart hook: empty if all is well, or there is none."""
        hook = self._lifecycle("postStart")
        return await self._hook(hook, LONGEST_GREETING) if hook else ""

    async def stop(self, grace: Callable[[], float]) -> None:
        """preStop hook, SIGTERM, and SIGKILL when `grace()`, the seconds left, is over. Returns when it is dead.

        A second call while the first is at work only brings its own grace.
        """
        hook = self._lifecycle("preStop")
        if not self._asked_to_end:
            self._asked_to_end = True
            if hook:
                await _within(self._hook(hook, grace()), grace)
            await _within(self._listening(), grace)
            if self.running:
                self._signal(signal.SIGTERM)
        await _within(self._ended(), lambda: max(grace(), SHORTEST_GRACE if hook else 0.0))
        self.kill()
        await self._ended()

    def kill(self) -> None:
        """SIGKILL, to the inside first: what is outside must not end before it."""
        if self.running:
            self._signal(signal.SIGKILL)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # --- what it says -------------------------------------------------------------------------------------------------

    def log(self, life: int) -> Path:
        """Standard output and error of one life."""
        return self._folder / f"{life}.log"

    def last_words(self, life: int, code: int) -> str:
        """The termination message, by the container's terminationMessagePolicy."""
        with contextlib.suppress(OSError):
            if written := self._message.read_text(errors="replace"):
                return written[:MESSAGE_LIMIT]
        if code == 0 or self._manifest.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return ""
        with self.log(life).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_MESSAGE_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_MESSAGE_LINES:])

    # --- probes and hooks ---------------------------------------------------------------------------------------------

    def probe(self, name: str) -> Probe | None:
        return Probe.of(self._manifest, name)

    def ask(self, probe: Probe) -> Callable[[], Awaitable[str]]:
        return lambda: ask_once(probe, self)

    def port(self, wanted: int | str) -> int:
        if isinstance(wanted, int):
            return wanted
        for port in self._manifest.get("ports") or ():
            if port.get("name") == wanted:
                number: int = port["containerPort"]
                return number
        raise ValueError(f"container {self.name} has no port {wanted!r}")

    async def execute(self, command: Sequence[str]) -> str:
        process = self._child(command, self._folder / "exec.log", ())
        process.start()
        try:
            code = await process.wait()
        finally:
            process.kill()
        return "" if code == 0 else f"{command[0]} ended with code {code}: {process.log_tail(1)}"

    def _lifecycle(self, name: str) -> Mapping[str, Any] | None:
        hook: Mapping[str, Any] | None = (self._manifest.get("lifecycle") or {}).get(name)
        return hook

    async def _hook(self, hook: Mapping[str, Any], limit: float) -> str:
        """Empty if it went well."""
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
            return ""
        return await ask_once(Probe(hook, 0, 0, limit, 1, 1), self)

    # --- plumbing -----------------------------------------------------------------------------------------------------

    def _mounts(self, volumes: Mapping[str, Path]) -> dict[str, Path]:
        found = {}
        for mount in self._manifest.get("volumeMounts") or ():
            target = volumes[mount["name"]] / str(mount.get("subPath", ""))
            if not target.exists():
                target.mkdir(parents=True)
            found[mount["mountPath"]] = target
        return found

    def _surroundings(self) -> dict[str, str]:
        """What a container finds at fixed places, for Berth's launcher by name; the image; and the mark."""
        run = self._place.folders.memory / f"run-{self.name}"
        return {
            **self._place.image.environment,
            "HOSTNAME": self._pod["spec"].get("hostname") or self._pod["metadata"]["name"],
            contract.TERMINATION_LOG: str(self._message),
            contract.HOSTS_FILE: str(self._place.hosts_file),
            contract.RUN_DIR: str(run),
            sandbox.MARK: f"{self._place.mark}/{self.name}",
        }

    def _child(self, words: Sequence[str], log: Path, prefix: Sequence[str]) -> ChildProcess:
        wanted = self._manifest.get("workingDir")
        return ChildProcess(
            self.name,
            [*prefix, *(self._paths.rewrite(word) for word in words)],
            directory=Path(self._paths.rewrite(wanted)) if wanted else self._folder,
            log=log,
            environment=self._environment,
        )

    def _signal(self, number: signal.Signals) -> None:
        main = sandbox.inner(self.pid, self._place.isolation)
        sandbox.send([self.pid if main is None else main], number)

    async def _listening(self) -> None:
        """SIGTERM would be heard, or there is nobody any more."""
        while self.running and sandbox.loses(self.pid, self._place.isolation, signal.SIGTERM):  # noqa: ASYNC110 - no event
            await asyncio.sleep(LISTENING_PERIOD)

    async def _ended(self) -> None:
        if self._process is not None:
            await self._process.wait()


async def _within(work: Awaitable[object], left: Callable[[], float]) -> None:
    """Awaits `work` for as long as `left()` says, which may shrink meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done() and left() > 0:
            await asyncio.wait([task], timeout=min(1.0, left()))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
