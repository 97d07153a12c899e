"""How a step reaches its workers. Knows plans and results, no scheduling and no model.

`build` loads the model and gives an `Executor`; where its workers live is its own business.
"""

from galley.executor.build import build
from galley.executor.executor import Executor, Handle

__all__ = ["Executor", "Handle", "build"]
