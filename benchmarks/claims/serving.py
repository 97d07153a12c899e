"""All figures of `galley bench serve` (282), and inter-token latency at 1, 8 and 32 clients over
HTTP."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import Curve, Finding, Row, Setup
from galley.cli.bench.main import main as bench
from galley.cli.bench.sweep.server import served

_CLIENTS = (1, 8, 32)


def measure(setup: Setup) -> Finding:
    command = f"{sys.executable} -m galley serve {setup.model}".strip()
    settings = {"enable_prompt_tokens_details": True}
    points = []
    with served(command, settings, 300) as server, tempfile.TemporaryDirectory() as folder:
        for clients in _CLIENTS:
            points.append(run(setup, server.port, Path(folder), clients))
    rows = [
        Row(
            "282",
            f"{point['clients']} clients over HTTP, prompts of 64 shared and 64 own tokens",
            f"{point['output_throughput']:.0f} output tok/s; TTFT p50 "
            f"{point['median_ttft_ms']:.0f} ms; ITL p50 / p99 {point['median_itl_ms']:.1f} / "
            f"{point['p99_itl_ms']:.1f} ms ({point['p99_itl_ms'] / point['median_itl_ms']:.1f} x)",
            f"{point['cache_reuse']:.0%} of prompt tokens reused; fairness "
            f"{point['fairness_index']:.3f}",
        )
        for point in points
    ]
    curves = tuple(
        Curve("over HTTP", "clients", field, points) for field in ("median_itl_ms", "p99_itl_ms")
    )
    return Finding(rows, curves)


def run(setup: Setup, port: int, folder: Path, clients: int) -> dict[str, Any]:
    """Run `galley bench serve` and return its result."""
    argv = [
        *("serve", "--port", str(port), "--dataset-name", "text", "--seed", str(clients)),
        *("--text-prefix-len", "64", "--text-input-len", "64", "--text-output-len", "64"),
        *("--num-prompts", str(setup.some(6 * clients, clients)), "--num-warmups", "2"),
        *("--max-concurrency", str(clients), "--temperature", "0", "--save-result"),
        *("--result-dir", str(folder), "--result-filename", f"{clients}.json"),
    ]
    if bench(argv):
        raise RuntimeError(f"requests failed with {clients} clients")
    result = json.loads((folder / f"{clients}.json").read_text(encoding="utf-8"))
    return {"clients": clients, **result}
