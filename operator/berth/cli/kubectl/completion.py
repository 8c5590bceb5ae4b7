"""Completion: `berth completion bash`, and what kubectl asks of `kubectl_complete-berth`."""

from __future__ import annotations

import sys

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion of a shell; for kubectl berth, how to install it.

    \b
    source <(berth completion bash)
    berth completion fish > ~/.config/fish/completions/berth.fish
    """
    from click.shell_completion import get_completion_class

    from berth.cli import main

    found = get_completion_class(shell)
    assert found is not None, f"click completes {shell}"
    click.echo(found(main, {}, "berth", "_BERTH_COMPLETE").source())
    click.echo(
        "# kubectl completes `kubectl berth` by itself (1.26 or newer) where kubectl_complete-berth is in PATH:\n"
        "# it is installed beside kubectl-berth."
    )


def kubectl_complete() -> None:
    """`kubectl_complete-berth WORD... LAST`: candidates for LAST, one a line, then cobra's directive."""
    from click.shell_completion import ShellComplete

    from berth.cli import main

    class Kubectl(ShellComplete):
        name = "kubectl"
        source_template = ""

    *words, last = sys.argv[1:] or [""]
    for each in Kubectl(main, {}, "kubectl berth", "_BERTH_COMPLETE").get_completions(words, last):
        if each.type == "plain":
            click.echo(f"{each.value}\t{each.help}" if each.help else each.value)
    click.echo(":4")  # no file names
