"""Pools of simulated nodes and deployments to vary, as in the controller's tests, and a running operator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.controller.conftest import Site, site
from tests.support.berth import RunningBerth, running_berth

__all__ = ["site"]


@pytest.fixture
async def berth(operator_kubeconfig: Path, site: Site) -> AsyncIterator[RunningBerth]:
    """An operator for the test's namespace; every leader produces tokens."""
    async with running_berth(operator_kubeconfig, site.namespace) as running:
        yield running
