"""`berth operator run`: the operator itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import click


@click.group("operator")
def operator() -> None:
    """Run the operator."""


@operator.command()
@click.option("--verbose", is_flag=True, help="Log debug messages.")
def run(verbose: bool) -> None:
    """Reconcile LLMDeployments until SIGTERM. Settings are environment variables BERTH_*."""
    from berth.app import App
    from berth.errors import BerthError
    from berth.settings import InvalidSettings, Settings

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
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
