"""The `berth` command line."""

from __future__ import annotations

import click

from berth.cli.crd import crd


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Berth places, serves and keeps alive large language models on Triton / TensorRT-LLM."""


main.add_command(crd)
