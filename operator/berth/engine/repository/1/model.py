"""Loads the model from Berth's library; Triton's stub ignores PYTHONPATH, so the launcher names it in BERTH_LIB."""

import os
import sys

sys.path.insert(0, os.environ["BERTH_LIB"])

from berth.engine.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
