"""S8: time from the command to the first streamed token, and memory of the idle server.

Starts are measured one at a time, engines alternating, with files in the page cache. Also runs
`galley bench startup`, which measures recovery from a killed engine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.peers.engines import ENGINES, Engine, environment_of, lab, stop
from galley.cli.bench import process
from galley.cli.bench.client import Target
from galley.cli.bench.main import main as bench
from galley.cli.bench.startup import connect, free_port, stream

_IDLE_SECONDS = 3.0
_LIMIT = 600.0


def first_token(engine: Engine, log: Path) -> tuple[float, float]:
    """Seconds from the command to the first streamed token; MB (PSS) once idle."""
    port = free_port()
    command = engine.words(port)
    target = Target.of(f"http://127.0.0.1:{port}/v1/completions", {})
    with open(log, "ab") as out:
        begin = time.perf_counter()
        server = subprocess.Popen(command, env=environment_of(engine), stdout=out, stderr=out)
        try:
            seconds = 0.0
            while not seconds:
                with connect(port, server, begin) as connection:
                    for moment in stream(connection, target, 2):
                        seconds = seconds or moment - begin
                if time.perf_counter() - begin > _LIMIT:
                    raise RuntimeError(f"no token within {_LIMIT:.0f} s; see {log}")
            time.sleep(_IDLE_SECONDS)
            return seconds, process.tree_usage(server.pid).pss / 1e6
        finally:
            stop(server)


def run_starts(names: list[str], runs: int) -> str:
    """A markdown table: medians and all starts."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            found[name].append(first_token(ENGINES[name], lab() / "out" / f"{name}-start.log"))
    lines = ["| engine | command to first token, s | idle memory, MB (PSS) |", "|---|---|---|"]
    for name, starts in found.items():
        times = [seconds for seconds, _ in starts]
        each = ", ".join(f"{seconds:.2f}" for seconds in times)
        memory = statistics.median(pss for _, pss in starts)
        lines.append(f"| {name} | {statistics.median(times):.2f} ({each}) | {memory:.0f} |")
    lines.append(f"| galley-q4_0, killed engine to next token | {restarts(runs)} | |")
    return "\n".join(lines)


def restarts(runs: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "startup.json"
        weights = str(lab() / "weights" / "smollm2-q4_0.gguf")
        argv = ["startup", weights, "--num-iters-cold", "0", "--num-iters-warmup", "0"]
        bench([*argv, "--num-iters-warm", str(runs), "--output-json", str(out)])
        times = json.loads(out.read_text())["engine_restart_times"]
    return f"{statistics.median(times):.2f} ({', '.join(f'{t:.2f}' for t in times)})"
