"""Clients inside the cluster, and the account of every request they sent.

The client runs in a pod, detached from the command that starts it, so that nothing that happens to the API server can
lose the account. An account knows each request: none is dropped, and a test says which errors it allows and when.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.cluster.images import Archive
from e2e.cluster.kind import Cluster
from e2e.cluster.shell import Failed, wait
from e2e.support.berth import ON_CONTROL_PLANE

NAMESPACE: Final = "e2e-clients"
POD: Final = "client"
SCRIPT: Final = Path(__file__).with_name("traffic_client.py")
LIMIT: Final = 600
"""Seconds after which a client stops by itself."""
_numbers = itertools.count()


@dataclass(frozen=True)
class Sent:
    """One request to its end; Unix seconds."""

    sent: float
    first: float | None
    last: float | None
    ended: float
    retried: float | None
    """When the first attempt broke and the client tried once more."""
    tokens: int
    error: str

    @property
    def answered(self) -> bool:
        return not self.error


@dataclass(frozen=True)
class Account:
    requests: tuple[Sent, ...]

    @property
    def failed(self) -> list[Sent]:
        return [each for each in self.requests if not each.answered]

    @property
    def retried(self) -> list[Sent]:
        return [each for each in self.requests if each.retried is not None]

    def between(self, begin: float, end: float) -> Account:
        """What was sent in [begin, end)."""
        return Account(tuple(each for each in self.requests if begin <= each.sent < end))

    def longest_gap(self) -> float:
        """Seconds: the longest time in which no answer was completed."""
        ends = sorted(each.ended for each in self.requests if each.answered)
        return max((later - earlier for earlier, later in itertools.pairwise(ends)), default=0.0)

    def longest_wait(self) -> float:
        """Seconds to the first token of the request that waited longest."""
        return max((each.first - each.sent for each in self.requests if each.first is not None), default=0.0)

    def __str__(self) -> str:
        errors = {each.error[:120] for each in self.failed}
        return (
            f"{len(self.requests)} requests, {len(self.failed)} failed, {len(self.retried)} sent twice, "
            f"longest gap {self.longest_gap():.1f} s, longest wait {self.longest_wait():.1f} s"
            + "".join(f"\n  {error}" for error in sorted(errors))
        )


@dataclass
class Traffic:
    """A client that sends until `stop`; `account` may be asked for at any time."""

    cluster: Cluster
    file: str
    began: float
    _stopped: Account | None = None

    def account(self) -> Account:
        """Of what has ended so far."""
        if self._stopped is not None:
            return self._stopped
        lines = self._exec("cat", self.file).splitlines()
        return Account(tuple(Sent(**json.loads(line)) for line in lines))

    def stop(self, timeout: float = 180) -> Account:
        """No new requests; returns when the last one has ended."""
        if self._stopped is None:
            self._exec("touch", self._beside(".stop"))
            wait("the client's requests end", lambda: self._exec("ls", self._beside(".done")), timeout)
            self._stopped = self.account()
        return self._stopped

    def flows(self, seconds: float = 3.0, timeout: float = 120) -> None:
        """Returns when requests sent in the last few seconds are being answered."""

        def answered() -> bool:
            return any(each.answered and each.sent > time.time() - seconds for each in self.account().requests)

        wait("requests are answered", answered, timeout)

    def _exec(self, *command: str) -> str:
        return self.cluster.kubectl("exec", f"--namespace={NAMESPACE}", POD, "--", *command)

    def _beside(self, suffix: str) -> str:
        return self.file.removesuffix(".jsonl") + suffix


def install(cluster: Cluster, image: Archive) -> None:
    """The pod that clients run in: Berth's image, which has tritonclient."""
    cluster.load(image, [cluster.control_plane])
    old = cluster.kubectl.find("pod", POD, NAMESPACE)
    script = SCRIPT.read_text()
    if (
        old
        and old["spec"]["containers"][0]["image"] == image.name
        and old["metadata"]["annotations"]["script"] == script
    ):
        return
    cluster.kubectl.delete("pod", POD, NAMESPACE, "--grace-period=1")
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    container = {
        "name": "client",
        "image": image.name,
        "imagePullPolicy": "Never",
        "command": ["python", "-c", "import signal; signal.pause()"],
        "volumeMounts": [{"name": "script", "mountPath": "/e2e"}, {"name": "tmp", "mountPath": "/tmp"}],
        "securityContext": security,
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": NAMESPACE, "annotations": {"script": script}},
        "spec": {
            **ON_CONTROL_PLANE,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "script", "configMap": {"name": "client"}}, {"name": "tmp", "emptyDir": {}}],
        },
    }
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.kubectl.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "client", "namespace": NAMESPACE},
            "data": {SCRIPT.name: script},
        },
        pod,
    )
    cluster.kubectl("wait", f"--namespace={NAMESPACE}", "pod", POD, "--for=condition=Ready", "--timeout=120s")


@contextmanager
def traffic(
    cluster: Cluster, address: str, *, rate: float = 4, input_tokens: int = 64, output_tokens: int = 24
) -> Iterator[Traffic]:
    """Requests through `address` (host:port) for the length of the block; they flow when it begins."""
    file = f"/tmp/{int(time.time())}-{next(_numbers)}.jsonl"
    sent = Traffic(cluster, file, time.time())
    numbers = [str(each) for each in (rate, input_tokens, output_tokens, LIMIT)]
    sent._exec("python", f"/e2e/{SCRIPT.name}", file, address, *numbers)
    try:
        sent.flows()
        yield sent
        sent.stop()
    except Failed as error:
        raise Failed(f"{error}\n{sent._exec('cat', file + '.log')[-2000:]}") from error
    finally:
        if sent._stopped is None:
            sent._exec("touch", sent._beside(".stop"))
