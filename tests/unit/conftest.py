"""Settings of property tests: no time limit per example, since machines that run tests are busy.

CI draws the same examples at every run, so that it judges the change and not the draw; everybody else draws new ones.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "unit")
