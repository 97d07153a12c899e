"""Real tools that `make check-deploy` brings; the tests of the gate need none of them."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BIN = ROOT / "build" / "tools" / "bin"


def run(*command: str | Path, timeout: float = 300, **options: Any) -> str:
    """Standard output of a tool that must succeed; warnings are not a part of it."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until(holds: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.5)


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.load(reply)


_RENDER = """
import json, sys
import helm_python as helm
chart, values = sys.argv[1], json.loads(sys.argv[2])
report = helm.lint(chart, values, strict=True)
bad = report["errors"] + [m for m in report["messages"] if m["severity"] > 1]
if bad:
    sys.exit(str(bad))
print(json.dumps(helm.Chart.load(chart).render(values, name="r", namespace="n")))
"""


def render_chart(chart: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that Helm makes of a chart, after its strict lint."""
    text = run(BIN / "python", "-c", _RENDER, chart, json.dumps(values))
    [made] = [line for line in text.splitlines() if line.startswith("{")]  # others are a log
    files: dict[str, str] = json.loads(made)
    objects = []
    for name, body in files.items():
        if name.endswith(".yaml"):
            objects += [document for document in yaml.safe_load_all(body) if document]
    return objects
