"""Runs modules of the pages outside of a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def run_node(folder: Path, expression: str, *modules: str) -> Any:
    """The value of an expression over what modules export; skips the test where there is no node.

    Args:
        modules: names of files in the folder, without `.js`.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run the pages' modules with")
    imports = "".join(
        f"import * as {m} from {json.dumps(str(folder / (m + '.js')))};" for m in modules
    )
    text = f"{imports} console.log(JSON.stringify({expression}))"
    argv = [node, "--experimental-default-type=module", "--input-type=module", "-"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
