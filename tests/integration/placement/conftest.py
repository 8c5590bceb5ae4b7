"""The site of the controller's tests: pools of simulated nodes, deployments to vary, and a running operator."""

from tests.integration.controller.conftest import berth, leaders, site

__all__ = ["berth", "leaders", "site"]
