"""What runs in each pod, as argv lists; no shell, and nothing a user wrote but names of environment variables.

The launcher (docs/designs/006-launcher.md) is PID 1 everywhere; after `--` comes what it starts:

    one pod                   tritonserver; the LLM API spawns its own ranks, for built engines too
    Ray (pytorch)             leader: tritonserver, whose engine heads the Ray cluster; workers: ray start
    SSH (pytorch, tensorrt)   leader: mpirun of trtllm-llmapi-launch tritonserver over all pods; workers: sshd
    simulated                 leader: tritonserver; workers: nothing, they only join and hold

There is never one server per rank: each would load the model and spawn all ranks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from berth import labels
from berth.core.render import timing
from berth.core.render.names import member_host
from berth.core.render.repository import MODELS, RAY_PORT
from berth.core.render.template import GroupTemplate
from berth.engine import contract

LAUNCHER: Final = ("python3", "-m", "berth.engine.launcher")
TRITON: Final = "/opt/tritonserver/bin/tritonserver"

CONNECTION_AGE: Final = 60
"""Seconds after which Triton asks a gRPC client to reconnect: a Service balances connections, not requests, so this is
how soon a new group gets its share, and how soon clients let go of one that left."""

SSH: Final = "/opt/berth/ssh"
SSH_PORT: Final = 2222
SSH_KEY: Final = f"{SSH}/ssh-privatekey"
"""With `authorized_keys` and `known_hosts` beside it: the Secret's three keys. All pods share the one key pair."""


def arguments(template: GroupTemplate, replica_group: str, member: int, environment: Sequence[str]) -> list[str]:
    """Arguments of the launcher in member `member`; `environment` names variables that all ranks need."""
    options = [
        f"--drain-timeout={timing.STOP_DRAIN}",
        f"--exit-timeout={timing.EXIT}",
    ]
    if template.members > 1:
        options = [
            f"--role={labels.LEADER if member == 0 else labels.WORKER}",
            f"--members={template.members}",
            f"--member={member}",
            *([] if member == 0 else [f"--leader={member_host(replica_group, 0)}"]),
            *options,
        ]
    started = _leads(template, replica_group, environment) if member == 0 else _works(template, replica_group)
    return [*options, *(["--", *started] if started else [])]


def drain(template: GroupTemplate, member: int) -> list[str]:
    """The preStop hook: refuse new requests after a short notice, wait for those in flight.

    A worker has none; its hook returns as soon as its launcher answers, and so hears the SIGTERM that follows.
    """
    notice, patience = (timing.NOTICE, template.drain_seconds) if member == 0 else (0, contract.STARTING)
    return [*LAUNCHER, "--drain", f"--grace={notice}", f"--timeout={notice + patience}"]


def _leads(template: GroupTemplate, replica_group: str, environment: Sequence[str]) -> list[str]:
    serving = _triton(template)
    if not over_ssh(template):
        return serving  # the launcher gives the server a prefix of its own, and removes what a killed one leaves
    # Every rank is given the same command; trtllm-llmapi-launch runs it on rank 0 and makes the others its workers.
    prefix = replica_group.replace("-", "_")
    region = f"--backend-config=python,shm-region-prefix-name={prefix}_0_"
    mpirun = _mpirun(template, replica_group, environment)
    return [*mpirun, "-n", str(template.allocation.gpus), "trtllm-llmapi-launch", *serving, region]


def _works(template: GroupTemplate, replica_group: str) -> list[str]:
    if template.backend == "simulated":
        return []
    if over_ssh(template):
        return [
            "/usr/sbin/sshd",
            "-D",
            "-e",
            f"-p{SSH_PORT}",
            f"-h{SSH_KEY}",
            f"-oAuthorizedKeysFile={SSH}/authorized_keys",
            "-oStrictModes=no",
            "-oPasswordAuthentication=no",
            "-oUsePAM=no",
            "-oPidFile=none",
        ]
    leader = member_host(replica_group, 0)
    return [
        "ray",
        "start",
        f"--address={leader}:{RAY_PORT}",
        f"--num-gpus={template.gpus_per_member}",
        "--disable-usage-stats",
        "--block",
    ]


def over_ssh(template: GroupTemplate) -> bool:
    return template.members > 1 and template.multi_node.launcher == "SSH"


def _triton(template: GroupTemplate) -> list[str]:
    age = CONNECTION_AGE * 1000
    # A stream that began just before the connection's age was reached must still be able to finish.
    grace = (timing.NOTICE + template.drain_seconds) * 1000
    argv = [
        TRITON,
        f"--model-repository={MODELS}",
        # The configuration is complete, and completing it would start each model once more just to ask.
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={timing.TRITON_EXIT}",
        f"--grpc-max-connection-age={age}",
        f"--grpc-max-connection-age-grace={grace}",
    ]
    if template.backend == "simulated":
        # No GPU to measure, and many servers share a small machine.
        argv += ["--allow-gpu-metrics=false", "--allow-cpu-metrics=false", "--http-thread-count=2"]
    return argv


def _mpirun(template: GroupTemplate, replica_group: str, environment: Sequence[str]) -> list[str]:
    """Open MPI 4 options, the release in TensorRT-LLM's images."""
    argv = ["mpirun", "--bind-to", "none"]
    hosts = ",".join(
        f"{member_host(replica_group, member)}:{template.gpus_per_member}" for member in range(template.members)
    )
    ssh = f"ssh -p {SSH_PORT} -i {SSH_KEY} -o StrictHostKeyChecking=yes -o UserKnownHostsFile={SSH}/known_hosts"
    argv += ["--host", hosts, "--mca", "plm_rsh_agent", ssh, "--mca", "plm_rsh_no_tree_spawn", "1"]
    # Sessions of sshd start without the container's environment.
    for name in ("LD_LIBRARY_PATH", "PATH", contract.LIB, *environment):
        argv += ["-x", name]
    return argv
