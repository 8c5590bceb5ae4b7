"""The `berth` command line."""

from __future__ import annotations

import click

from berth.cli.crd import crd
from berth.cli.demo import demo
from berth.cli.estimate import estimate
from berth.cli.kubectl import COMMANDS
from berth.cli.local import local
from berth.cli.model import model
from berth.cli.operator import operator
from berth.cli.plan import plan
from berth.cli.pools import pools
from berth.cli.simulate import simulate
from berth.cli.traffic import traffic


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="berth-operator")
def main() -> None:
    """Berth places, serves and keeps alive large language models on Triton / TensorRT-LLM."""


main.add_command(crd)
main.add_command(demo)
main.add_command(estimate)
main.add_command(local)
main.add_command(model)
main.add_command(operator)
main.add_command(plan)
main.add_command(pools)
main.add_command(simulate)
main.add_command(traffic)
for command in COMMANDS:
    main.add_command(command)
