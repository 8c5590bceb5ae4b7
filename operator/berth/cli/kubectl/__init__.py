"""`kubectl berth ...`: what people ask and do at night, with their own kubeconfig and their own rights.

The same commands are `berth ...`. They read objects, change only what the person may change (a field of spec, the
annotation for requests), and never read Secrets.
"""

from __future__ import annotations

import click

from berth.cli.kubectl.bundle import support_bundle
from berth.cli.kubectl.completion import completion
from berth.cli.kubectl.events import events
from berth.cli.kubectl.explain import explain
from berth.cli.kubectl.pause import pause, resume
from berth.cli.kubectl.requests import failover, move
from berth.cli.kubectl.status import status
from berth.cli.kubectl.top import top

COMMANDS: tuple[click.Command, ...] = (
    status,
    explain,
    top,
    events,
    failover,
    move,
    pause,
    resume,
    support_bundle,
    completion,
)
