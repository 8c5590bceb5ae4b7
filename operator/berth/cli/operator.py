"""`berth operator`: `run` is the operator itself, `clear` what is done before its CRDs are taken away."""

from __future__ import annotations

import asyncio
import os
import signal

import click

from berth import logs


@click.group("operator")
def operator() -> None:
    """Run the operator, or clear the cluster of what it made."""


@operator.command()
@click.option("--verbose", is_flag=True, help="Log debug messages.")
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    default="text",
    show_default=True,
    help="One line per message: for people, or as JSON.",
)
def run(verbose: bool, log_format: logs.Format) -> None:
    """Reconcile LLMDeployments until SIGTERM. Settings are environment variables BERTH_*."""
    from berth.app import App
    from berth.errors import BerthError
    from berth.settings import InvalidSettings, Settings

    logs.configure(log_format, verbose=verbose)
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidSettings as error:
        raise click.ClickException(str(error)) from None

    async def main() -> None:
        app = App(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, app.stop.set)
        await app.run()

    try:
        asyncio.run(main())
    except BerthError as error:
        raise click.ClickException(str(error)) from None


@operator.command()
@click.option("--timeout", default=240, show_default=True, help="Seconds after which what is left is told as an error.")
@click.option("--yes", is_flag=True, help="Really delete every LLMDeployment of the cluster.")
def clear(timeout: int, yes: bool) -> None:
    """Delete every LLMDeployment of the cluster and wait until all that was made for them is gone.

    To be done before the CustomResourceDefinitions go: afterwards the garbage collector may not find their pods.
    """
    from kubernetes.aio.client import ApiClient

    from berth.controller.clear import clear as clear_all
    from berth.errors import BerthError
    from berth.kube import auth
    from berth.kube.client import KubeClient
    from berth.settings import Settings

    if not yes:
        raise click.ClickException("this deletes every LLMDeployment of the cluster and its pods: give --yes")
    told = ""

    def tell(words: str) -> None:
        nonlocal told
        told = words
        click.echo(f"left: {words}")

    async def main() -> None:
        settings = Settings.from_environment(os.environ)
        async with ApiClient(await auth.configuration(settings.kubeconfig, settings.context)) as api:
            async with asyncio.timeout(timeout):
                await clear_all(KubeClient(api), tell)

    try:
        asyncio.run(main())
    except TimeoutError:
        raise click.ClickException(f"after {timeout} s there is still left: {told or 'unknown'}") from None
    except BerthError as error:
        raise click.ClickException(str(error)) from None
    click.echo("nothing is left")
