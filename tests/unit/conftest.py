"""Settings of property tests: no time limit per example, since machines that run tests are busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
