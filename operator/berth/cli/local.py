"""`berth local`: a Kubernetes on this machine whose pods are processes, with real Triton servers and no GPU."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from berth.cli.output import age, dump, table

if TYPE_CHECKING:
    from berth.local.config import Config

_Command = Callable[..., Any]


def _name_option(command: _Command) -> _Command:
    return click.option("--name", default="berth", show_default=True, help="Name of the cluster.")(command)


_output = click.option("-o", "--output", type=click.Choice(["table", "yaml", "json"]), default="table")


@click.group()
def local() -> None:
    """A Kubernetes on this machine: real control plane, nodes with simulated GPUs, real Triton servers.

    No root, no containers: pods are processes. Several clusters run side by side, told apart by --name.
    """


@local.command()
@_name_option
@click.option("--pool", "pools", multiple=True, metavar="GPU=NODESxGPUS", help="Default: h100=2x8 and a100-40=2x8.")
@click.option("--simulated", multiple=True, metavar="GPU=NODESxGPUS", help="Nodes without processes, in any number.")
@click.option("--storage", metavar="DIR", help="Folder with a folder per PersistentVolumeClaim.")
@click.option("--no-operator", is_flag=True, help="Start no operator; run your own with the kubeconfig.")
@click.option("--foreground", is_flag=True, help="Stay, and end the cluster on Ctrl-C.")
def up(
    name: str,
    pools: tuple[str, ...],
    simulated: tuple[str, ...],
    storage: str | None,
    no_operator: bool,
    foreground: bool,
) -> None:
    """Start a cluster. It runs until `berth local down`."""
    from berth.local import cluster
    from berth.local.config import DEFAULT_POOLS, MOST_SIMULATED, Config, PoolOption
    from berth.local.screen import Screen

    with errors():
        config = Config(
            name=name,
            pools=tuple(PoolOption.parse(text) for text in pools) or DEFAULT_POOLS,
            simulated=tuple(PoolOption.parse(text, MOST_SIMULATED) for text in simulated),
            storage=os.path.abspath(storage) if storage else None,
            operator=not no_operator,
        )
        screen = Screen()
        with ended_by_signals(), cluster.up(config, screen.step, screen.working) as started:
            click.echo(_greeting(config))
            if foreground:
                started.wait()
            else:
                started.keep()


@local.command()
@_name_option
def down(name: str) -> None:
    """End a cluster and remove everything it has."""
    from berth.local import cluster

    with errors():
        existed = cluster.down(name)
    click.echo(f"local cluster {name} is gone" if existed else f"there is no local cluster {name}")


@local.command()
@_name_option
@_output
def status(name: str, output: str) -> None:
    """Show nodes, Services with their addresses, and where things are."""
    found = _ask(name, {"do": "status"})
    if output != "table":
        click.echo(dump(found, output), nl=False)
        return
    click.echo(f"{name}  up for {age(found['since'])}  {found['server']}")
    click.echo(f"  kubeconfig  {found['kubeconfig']}")
    click.echo(f"  operator    {found['operator'] or 'not started here'}")
    click.echo(f"  logs        {found['folder']}/logs")
    click.echo()
    click.echo(_node_table(found["nodes"]))
    services = [
        (each["namespace"], each["name"], f"{each['address']}:{port}", str(len(each["pods"])))
        for each in found["services"]
        for port in each["ports"]
    ]
    if services:
        click.echo()
        click.echo("\n".join(table([("NAMESPACE", "SERVICE", "ADDRESS", "PODS"), *services])))


@local.command()
@_name_option
def kubeconfig(name: str) -> None:
    """Print the path of the kubeconfig: export KUBECONFIG=$(berth local kubeconfig)."""
    click.echo(_ask(name, {"do": "status"})["kubeconfig"])


@local.command()
@_name_option
@click.argument("service")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--grpc", is_flag=True, help="HOST:PORT of Triton's gRPC instead of the URL of its HTTP.")
def url(name: str, service: str, namespace: str, grpc: bool) -> None:
    """Print where clients reach a Service: curl $(berth local url llama-70b)/v2/health/ready."""
    from berth.engine import contract

    for each in _ask(name, {"do": "status"})["services"]:
        if (each["namespace"], each["name"]) == (namespace, service):
            address = each["address"]
            click.echo(f"{address}:{contract.PORT_GRPC}" if grpc else f"http://{address}:{contract.PORT_HTTP}")
            return
    raise click.ClickException(f"no Service {service} in namespace {namespace}: berth local status")


@local.command(context_settings={"ignore_unknown_options": True})
@_name_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def kubectl(name: str, arguments: tuple[str, ...]) -> None:
    """Run kubectl against the cluster; it is built once if this machine has none."""
    from berth.local import binaries

    path = _ask(name, {"do": "status"})["kubeconfig"]
    with errors():
        program = binaries.provide(["kubectl"])["kubectl"]
    os.execve(program, [str(program), *arguments], {**os.environ, "KUBECONFIG": path})  # noqa: S606 - no shell


@local.group(invoke_without_command=True)
@_name_option
@_output
@click.pass_context
def nodes(context: click.Context, name: str, output: str) -> None:
    """Show the nodes, or make one fail."""
    context.obj = name
    if context.invoked_subcommand is None:
        found = _ask(name, {"do": "status"})["nodes"]
        click.echo(_node_table(found) if output == "table" else dump(found, output), nl=output == "table")


@nodes.command()
@click.argument("node")
@click.pass_obj
def silence(name: str, node: str) -> None:
    """Cut a node's kubelet off; its pods run on, as in a network partition."""
    _act(name, node, "silence")


@nodes.command()
@click.argument("node")
@click.pass_obj
def kill(name: str, node: str) -> None:
    """Take a node's power: no Lease, no status, and connections to its pods hang."""
    _act(name, node, "kill")


@nodes.command()
@click.argument("node")
@click.pass_obj
def revive(name: str, node: str) -> None:
    """Bring a node back; after `kill` its containers start again."""
    _act(name, node, "revive")


@nodes.command()
@click.argument("node")
@click.option("--unhealthy", type=click.IntRange(min=0), required=True, help="GPUs that are sick; 0 heals all.")
@click.pass_obj
def gpus(name: str, node: str, unhealthy: int) -> None:
    """Make GPUs of a node sick, as a device plugin reports it."""
    _act(name, node, "gpus", unhealthy=unhealthy)


def _pod_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """`kubectl get -o name` says pod/NAME."""
    return value.removeprefix("pod/")


_pod = click.argument("pod", callback=_pod_name)


@local.command()
@_name_option
@_pod
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("-c", "--container", help="Default: the first.")
@click.option("-p", "--previous", is_flag=True, help="Of the container's life before this one.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
def logs(name: str, pod: str, namespace: str, container: str | None, previous: bool, follow: bool) -> None:
    """Print the log of a pod."""
    request = {"do": "log", "namespace": namespace, "pod": pod, "container": container, "previous": previous}
    path = Path(_ask(name, request))
    try:
        with path.open(errors="replace") as log, contextlib.suppress(KeyboardInterrupt):
            while True:
                click.echo(log.read(), nl=False)
                if not follow or not path.exists():
                    return
                time.sleep(0.2)
    except FileNotFoundError:
        raise click.ClickException(f"pod {pod} has no log yet: look at its status") from None


@local.command()
@_name_option
@_pod
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--hang", is_flag=True, help="The engine freezes; Triton's health stays 200.")
@click.option("--crash", is_flag=True, help="The engine's process ends.")
@click.option("--errors", is_flag=True, help="Every request fails.")
@click.option("--slow", type=click.FloatRange(min=1), metavar="FACTOR", help="Every step takes so many times longer.")
def fault(name: str, pod: str, namespace: str, hang: bool, crash: bool, errors: bool, slow: float | None) -> None:
    """Make the simulated engine of a pod fail; without options all faults end."""
    from berth.local.faults import switch

    switches = {"hang": hang, "crash": crash, "errors": errors, "slow": slow}
    found = [
        each
        for node in _ask(name, {"do": "status"})["nodes"]
        for each in node["pods"]
        if (each["namespace"], each["name"]) == (namespace, pod)
    ]
    folders = list(Path(found[0]["memory"]).glob("run-*")) if found else []
    if not folders:
        raise click.ClickException(f"no pod {pod} with a launcher runs in namespace {namespace}: berth local status")
    switch(folders[0], switches)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _greeting(config: Config) -> str:
    from berth.local.screen import own_command

    local = f"{own_command()} local"
    option = "" if config.name == "berth" else f" --name {config.name}"
    return "\n".join(
        [
            "",
            "next:",
            f"  export KUBECONFIG=$({local} kubeconfig{option})",
            f"  {local} kubectl{option} apply -f manifests/samples/llama-70b.yaml",
            f"  {local} kubectl{option} get llmd",
            f"  {local} status{option}",
            f"  {local} down{option}",
        ]
    )


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does, so that what was begun is cleaned up."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    yield


@contextlib.contextmanager
def errors() -> Iterator[None]:
    from berth.errors import BerthError

    try:
        yield
    except BerthError as error:
        raise click.ClickException(str(error)) from None


def _ask(name: str, request: dict[str, Any]) -> Any:
    from berth.local import cluster, control

    with errors(), contextlib.suppress(control.NotRunning):
        return control.ask(cluster.folder_of(name), request)
    others = cluster.running()
    more = f"; there is: {', '.join(others)}" if others else ""
    raise click.ClickException(f"no local cluster {name} is running: berth local up{more}")


def _act(name: str, node: str, action: str, **more: Any) -> None:
    state = _ask(name, {"do": "node", "name": node, "action": action, **more})
    click.echo(f"{node}: {state}" + (f", {more['unhealthy']} GPUs unhealthy" if more else ""))


def _node_table(nodes: list[dict[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = [("NODE", "GPU", "ZONE", "STATE", "GPUS", "UNHEALTHY", "PODS")]
    rows += [
        (
            node["name"],
            node["product"],
            node["zone"],
            node["state"],
            str(node["gpus"]["capacity"]),
            str(node["gpus"]["unhealthy"]),
            str(len(node["pods"])),
        )
        for node in nodes
    ]
    return "\n".join(table(rows))
