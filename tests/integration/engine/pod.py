"""One pod as the kubelet would run it: launcher, real tritonserver, own loopback address, files from the bundle."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from berth.engine import bundle, contract
from berth.local.triton_env import TritonEnv

SIMULATED = {
    "model": "llama-3.1-8b-instruct",
    "parameters_b": 8.03,
    "precision": "bf16",
    "gpu": "H100-SXM-80",
    "tensor_parallel": 1,
    "weight_gib": 15.0,
    "kv_bytes_per_token": 131072,
    "load_seconds": 0.1,
    "noise": 0.0,
}
SERVER_ARGUMENTS = (
    "--disable-auto-complete-config",
    "--strict-readiness=true",
    "--exit-timeout-secs=20",
    "--allow-gpu-metrics=false",
    "--allow-cpu-metrics=false",
    "--http-thread-count=2",
)
_addresses = itertools.count(1)


def new_address() -> str:
    """A loopback address that no other test process uses."""
    number = next(_addresses)
    return f"127.{64 + os.getpid() % 64}.{os.getpid() // 64 % 250}.{number}"


class Pod:
    """`run_dir` outlives the process, as a memory-backed emptyDir does."""

    def __init__(self, env: TritonEnv, directory: Path) -> None:
        self.env = env
        self.directory = directory
        self.address = new_address()
        self.run_dir = Path("/dev/shm") / f"berth-test-{self.address}"
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        for root, files in (("lib", bundle.library()), ("models/tensorrt_llm", bundle.repository())):
            for path, text in files.items():
                target = directory / root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)

    # --- life --------------------------------------------------------------------------------------------------------
    def start(
        self, *options: str, simulated: dict[str, Any] | None = None, faults: dict[str, Any] | None = None, **env: str
    ) -> Pod:
        config = {
            "engine": "simulated",
            "limits": {"max_output_tokens": 2048},
            "simulated": {**SIMULATED, **(simulated or {})},
        }
        (self.directory / "models/tensorrt_llm/1/model.yaml").write_text(json.dumps(config))
        self.run_dir.mkdir(exist_ok=True)
        if faults:
            self.fault(**faults)
        command = [str(self.env.server), f"--model-repository={self.directory / 'models'}", *SERVER_ARGUMENTS]
        self._launch(["--exit-timeout=1", *options, "--", *command], env)
        return self

    def start_worker(self, *options: str, **env: str) -> Pod:
        """A worker of a simulated group has no command."""
        self.run_dir.mkdir(exist_ok=True)
        self._launch(["--role=worker", *options], env)
        return self

    def _launch(self, arguments: list[str], env: dict[str, str]) -> None:
        self.started = time.monotonic()
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(self.env.python), "-m", "berth.engine.launcher", *arguments],
                env={**self.environment, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.env.environment(),
            "PYTHONPATH": str(self.directory / "lib"),
            contract.POD_IP: self.address,
            contract.GROUP: "g0",
            contract.INCARNATION: "3",
            contract.POOL: "h100",
            contract.RUN_DIR: str(self.run_dir),
            contract.TERMINATION_LOG: str(self.directory / "termination"),
        }

    def wait(self, seconds: float) -> int:
        """Exit code of the launcher."""
        assert self.process
        return self.process.wait(seconds)

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def close(self) -> None:
        """Stops it if it still runs, as a kubelet does: SIGTERM, grace, SIGKILL."""
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(10)
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for path in self.run_dir.glob("*"):
            path.unlink()
        with contextlib.suppress(OSError):
            self.run_dir.rmdir()

    def fault(self, **switches: Any) -> None:
        """Switches faults on; without arguments all off."""
        new = self.run_dir / "faults.new"
        new.write_text(json.dumps(switches))
        new.rename(self.run_dir / contract.DEFAULT_FAULT_FILE)

    # --- what it says ------------------------------------------------------------------------------------------------
    @property
    def grpc(self) -> str:
        return f"{self.address}:{contract.PORT_GRPC}"

    @property
    def message(self) -> str:
        return (self.directory / "termination").read_text()

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def http(self, method: str, path: str, document: Any = None, *, port: int = contract.PORT_PAGE) -> tuple[int, str]:
        """(status, body); status 0 where nothing answers."""
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"http://{self.address}:{port}{path}", body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def state(self) -> dict[str, Any]:
        status, body = self.http("GET", "/state")
        assert status == 200, self.log
        return json.loads(body)

    def metric(self, line: str) -> float:
        """Value of the metrics line that starts so."""
        _, text = self.http("GET", "/metrics")
        return next(float(each.rpartition(" ")[2]) for each in text.splitlines() if each.rpartition(" ")[0] == line)

    def until(self, true: Callable[[], bool], seconds: float = 15.0) -> float:
        """Polls until it is so; how long that took."""
        started = time.monotonic()
        while not true():
            assert time.monotonic() - started < seconds, f"waited {seconds}s; log:\n{self.log}"
            assert self.process is not None
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        return time.monotonic() - started

    def until_serving(self) -> Pod:
        self.until(lambda: self.http("GET", "/readyz")[0] == 200)
        return self

    def descendants(self) -> list[int]:
        """Processes of this pod: its launcher's session and its model's stub carry its files in their arguments or
        environment."""
        mark = self.address.encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def shared_memory(self) -> list[str]:
        """What is left in /dev/shm beside the run directory."""
        return [path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(f"berth_{self.address}_")]
