"""Runs plans on workers. Knows plans and results, no scheduling and no model.

`build` loads the model and returns an `Executor`.
"""

from galley.executor.build import build
from galley.executor.executor import Executor, Handle

__all__ = ["Executor", "Handle", "build"]
