"""`berth operator run`: the operator itself."""

from __future__ import annotations

import asyncio
import os
import signal

import click

from berth import logs


@click.group("operator")
def operator() -> None:
    """Run the operator."""


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
