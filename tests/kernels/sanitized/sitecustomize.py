"""Puts another build of the kernels in the place of the one in galley/kernels.

Python imports this by itself where the folder is on PYTHONPATH (`make sanitize`), in the processes
too that tests start. GALLEY_NATIVE names the module's file.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from typing import Any


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "galley.kernels._native":
            return None
        return importlib.util.spec_from_file_location(name, os.environ["GALLEY_NATIVE"])


sys.meta_path.insert(0, _Finder())
