"""NVIDIA's AIPerf as a client that knows nothing of Berth: Triton's generate_stream over HTTP, through the Service.

It runs on this machine, in an environment of its own, and reaches the Service through a pod: a port that is forwarded
to it, and there a relay that makes a connection to the Service for each of AIPerf's. So which group answers is decided
by the cluster, as for any client inside it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from berth import labels
from e2e.cluster.images import CHECKOUT
from e2e.cluster.kind import Cluster
from e2e.cluster.shell import Failed, run, wait
from e2e.cluster.steps import made
from e2e.support.traffic import LIMIT, NAMESPACE, POD, Account, Sent

LOCK: Final = CHECKOUT / "e2e" / "requirements-aiperf.lock"
MODEL: Final = "tensorrt_llm"
OUTPUT_TOKENS: Final = 24
_BODY: Final = '{"text_input": {{ text|tojson }}, "streaming": true, "sampling_param_max_tokens": {{ max_tokens }}}'
_TOKENIZER: Final = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=bytewise).save_pretrained(sys.argv[1])
"""
"""A token per byte: AIPerf's own tokenizers have to be fetched."""
_RELAY: Final = """
import asyncio, os, socket, sys

async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()

async def relay(reader, writer):
    try:
        back, forth = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
        await asyncio.gather(copy(reader, forth), copy(back, writer))
        forth.close()
    except OSError:
        pass
    writer.close()

async def main():
    await asyncio.start_server(relay, sock=listening)
    await asyncio.sleep(float(sys.argv[3]))

listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
if os.fork() == 0:
    os.setsid()
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    asyncio.run(main())
"""


@dataclass
class Running:
    """AIPerf at work."""

    process: subprocess.Popen[bytes]
    folder: Path

    def flows(self) -> None:
        """Returns when requests are being answered."""
        records = self.folder / "profile_export.jsonl"
        wait("AIPerf's requests are answered", lambda: records.is_file() and records.stat().st_size, timeout=180)

    def account(self) -> Account:
        """Of every request, once the last has ended."""
        if self.process.wait(timeout=LIMIT):
            raise Failed(f"AIPerf: exit code {self.process.returncode}\n{self._log()[-3000:]}")
        lines = (self.folder / "profile_export.jsonl").read_text().splitlines()
        return Account(tuple(sorted(map(request_of, map(json.loads, lines)), key=lambda each: each.sent)))

    def _log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def aiperf(cluster: Cluster, deployment: str, namespace: str, *, rate: float, requests: int) -> Iterator[Running]:
    """So many requests at this rate, each over a connection of its own, as behind an ingress."""
    home = _environment()
    with tempfile.TemporaryDirectory() as place, _relayed(cluster, f"{deployment}.{namespace}.svc") as address:
        folder = Path(place)
        (folder / "body.json").write_text(_BODY)
        numbers = {"request-rate": rate, "request-count": requests, "random-seed": 1}
        lengths = {"synthetic-input-tokens-mean": 64, "output-tokens-mean": OUTPUT_TOKENS}
        small = {"workers-max": 1, "record-processors": 1, "ui-type": "none"}
        options = {
            "model": MODEL,
            "url": address,
            "tokenizer": home / "bytewise",
            "artifact-dir": folder,
            "endpoint-type": "template",
            "custom-endpoint": f"/v2/models/{MODEL}/generate_stream",
            "connection-reuse-strategy": "never",
            **numbers,
            **lengths,
            **small,
        }
        command = [str(home / "bin" / "python"), "-m", "aiperf", "profile", "--streaming", "--no-gpu-telemetry"]
        command += ["--no-server-metrics", *(f"--{name}={value}" for name, value in options.items())]
        command += ["--extra-inputs", f"payload_template:{folder / 'body.json'}"]
        command += ["--extra-inputs", "response_field:text_output"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield Running(process, folder)
        finally:
            process.terminate()
            process.wait(timeout=60)


def _environment() -> Path:
    def make(place: Path) -> None:
        run(sys.executable, "-m", "venv", place)
        python = place / "bin" / "python"
        quiet = ["--quiet", "--disable-pip-version-check"]
        run(python, "-m", "pip", *quiet, "install", "--no-compile", "--require-hashes", "-r", LOCK, timeout=1500)
        run(python, "-c", _TOKENIZER, place / "bytewise", timeout=300)

    return made("aiperf", [LOCK, _TOKENIZER, sys.version], make)


@contextmanager
def _relayed(cluster: Cluster, service: str) -> Iterator[str]:
    """URL on this machine of the Service's HTTP port."""
    where = [f"--namespace={NAMESPACE}"]
    arguments = [service, str(labels.PORT_HTTP), str(LIMIT)]
    port = cluster.kubectl("exec", *where, POD, "--", "python", "-c", _RELAY, *arguments).strip()
    with tempfile.NamedTemporaryFile("r") as log:
        forward = cluster.kubectl.start("port-forward", *where, POD, f":{port}", log=Path(log.name))

        def address() -> str:
            found = re.search(r"Forwarding from (127\.0\.0\.1:\d+)", Path(log.name).read_text())
            return found[1] if found else ""

        try:
            wait("the port is forwarded", address, timeout=60)
            yield f"http://{address()}"
        finally:
            forward.terminate()
            forward.wait(timeout=30)


def request_of(record: dict[str, Any]) -> Sent:
    """A line of AIPerf's records."""
    metadata, metrics = record["metadata"], record.get("metrics") or {}
    began, ended = metadata["request_start_ns"] / 1e9, metadata["request_end_ns"] / 1e9
    first = metrics.get("time_to_first_token")
    gaps = metrics.get("inter_chunk_latency")  # between messages, however the network joined them
    return Sent(
        sent=began,
        first=began + first["value"] / 1000 if first else None,
        last=ended if first else None,
        ended=ended,
        retried=None,
        tokens=len(gaps["value"]) + 1 if gaps else 0,
        error=json.dumps(record["error"]) if record.get("error") else "",
    )
