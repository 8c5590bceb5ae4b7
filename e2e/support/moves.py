"""A deployment that may move between the pools, and an operator whose windows and waits pass faster than in life."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from e2e.cluster.kubectl import Manifest
from e2e.cluster.shell import wait
from e2e.site import Site, sample
from e2e.support.berth import SETTINGS
from e2e.support.deployments import Deployment

RATE: Final = 8
"""Requests per second that its clients send."""
REQUESTS: Final[Manifest] = {"rate": RATE, "input_tokens": 50, "output_tokens": 20}
SLOW: Final = 4
"""Times a step on a slow pool: far beyond the objective, which both pools meet by far as they are."""


@contextmanager
def hurried(site: Site, hour: int = 20) -> Iterator[None]:
    """With an operator for which what decisions take for an hour is over in so many seconds."""
    quick = {"decisionHour": hour, "metricsInterval": 0.5, "metricsWarmUp": 0, "resync": 5}
    site.berth.install(settings={**SETTINGS, **quick})
    try:
        yield
    finally:
        site.berth.install()


def movable(site: Site, namespace: str) -> Deployment:
    """One group of a small model, placed by the planner, that serves."""
    manifest = sample(
        "llama-8b-one-gpu",
        namespace,
        site,
        traffic={
            "requestsPerSecond": str(RATE),
            "inputTokens": {"mean": 50, "p95": 60, "max": 4000},
            "outputTokens": {"mean": 20, "p95": 25, "maxRequested": 1024},
        },
        objectives={"timeToFirstToken": {"p95": "2s"}, "timePerOutputToken": {"p95": "36ms"}},
        scaling={"min": 1, "max": 1},
        placement={"mode": "Auto", "moves": {"cooldown": "1m", "payBackWithin": "720h"}},
        update={"deadline": "2m"},
    )
    site.cluster.kubectl.apply(manifest)
    deployment = Deployment(site.cluster.kubectl, namespace, "llama-8b")
    deployment.wait_until_serving(1)
    return deployment


def pool_of(deployment: Deployment) -> str:
    return str(deployment.status()["placement"]["allocations"][0]["pool"])


def other_pool(deployment: Deployment) -> str:
    return {"h100": "a100-40", "a100-40": "h100"}[pool_of(deployment)]


def wait_until_ended(deployment: Deployment, timeout: float = 240) -> Manifest:
    """The first move of the deployment, once it has ended."""

    def ended() -> bool:
        moves = deployment.status().get("moves", {})
        return bool(moves.get("recent")) and "current" not in moves

    wait(f"a move of {deployment.name} ends", ended, timeout)
    move: Manifest = deployment.status()["moves"]["recent"][0]
    return move
