"""`galley bench startup`: time from the command to the first streamed token, and from killing the
engine to the next token.

A cold start has an empty cache of packed weights, a warm start a filled one. In both cases the
model files are normally in the system's page cache.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from galley.cli.bench import process
from galley.cli.bench.backends import BACKENDS, Options, request_body
from galley.cli.bench.client import Target
from galley.cli.bench.datasets import Sample
from galley.cli.bench.offline import engine_parser, percentiles, write_json
from galley.cli.bench.tables import print_table
from galley.cli.parser import engine_flags, make
from galley.errors import ConfigError, ServerError

_LIMIT = 600.0
_IDLE_SECONDS = 2.0
#: The stream during which the engine is killed: total tokens, and tokens received before the kill.
_LONG, _BEFORE = 400, 40


@dataclass(frozen=True)
class StartupFlags:
    """Startup"""

    num_iters_cold: int = 3
    """Starts with an empty cache."""
    num_iters_warmup: int = 1
    """Starts that fill the cache and are not measured."""
    num_iters_warm: int = 3
    """Starts with a filled cache; the engine is killed after each."""
    output_json: str | None = None
    """Write the result to this JSON file."""


@dataclass(frozen=True)
class Start:
    """Figures of one start: seconds since the command, memory of all processes in bytes (PSS)."""

    listening: float
    first_token: float
    idle_memory: int
    restart: float | None
    """Seconds from killing the engine to the next token of a stream; None: not measured."""


def main(argv: list[str]) -> int:
    parser = engine_parser(
        "bench startup",
        "Measure the time of `galley serve` to the first streamed token, and to the next one "
        "after its engine is killed.",
        [StartupFlags],
        "galley bench startup model.gguf --num-iters-warm 5",
    )
    values = parser.read(argv)
    flags, engine = make(StartupFlags, values), engine_flags(values)
    if min(flags.num_iters_cold, flags.num_iters_warmup, flags.num_iters_warm) < 0:
        raise ConfigError("numbers of iterations must not be negative.", field="num_iters_cold")
    command = serve_command(engine)
    cold = []
    for _ in range(flags.num_iters_cold):
        with tempfile.TemporaryDirectory(prefix="galley-cold-") as cache:
            cold.append(start_once(command, {"GALLEY_CACHE_DIR": cache}, False))
    for _ in range(flags.num_iters_warmup):
        start_once(command, {}, False)
    warm = [start_once(command, {}, True) for _ in range(flags.num_iters_warm)]
    result = summary(cold, warm)
    print_table("Startup: seconds from the command; memory in MB (PSS)", table(cold, warm))
    write_json(flags.output_json, result)
    return 0


def serve_command(engine: dict[str, Any]) -> list[str]:
    """`galley serve` with the given engine flags."""
    flags = dict(engine)
    command = [sys.executable, "-m", "galley", "serve"]
    if flags.get("model"):
        command.append(flags.pop("model"))
    for name, value in flags.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            command += [f"--{option}", *value]
        else:
            command += [f"--{option}", str(value)]
    return command


def start_once(command: list[str], environment: dict[str, str], kill: bool) -> Start:
    """Start a server, measure it and stop it. Raises ServerError if it does not serve."""
    port = free_port()
    target = Target.of(f"http://127.0.0.1:{port}/v1/completions", {})
    whole = [*command, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"]
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        server = subprocess.Popen(whole, stdout=log, stderr=log, env={**os.environ, **environment})
        try:
            connection = connect(port, server, begin)
            listening = time.perf_counter() - begin
            with connection:
                next(stream(connection, target, 2))
                first = time.perf_counter() - begin
            time.sleep(_IDLE_SECONDS)
            idle = process.tree_usage(server.pid).pss
            restart = killed_engine(port, target, server) if kill else None
            return Start(listening, first, idle, restart)
        except (OSError, StopIteration) as e:
            log.seek(0)
            output = log.read()[-500:].decode(errors="replace")
            raise ServerError(f"the server did not serve ({e}): {output}") from e
        finally:
            end(server)


def connect(port: int, server: subprocess.Popen[bytes], begin: float) -> socket.socket:
    """Connect as soon as the port accepts. Raises OSError if the server has ended."""
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.settimeout(_LIMIT)
            return connection
        except ConnectionRefusedError:
            if server.poll() is not None:
                raise OSError(f"it ended with {server.returncode}") from None
            if time.perf_counter() - begin > _LIMIT:
                raise
        time.sleep(0.002)


def stream(connection: socket.socket, target: Target, count: int) -> Iterator[float]:
    """Request `count` tokens; yield `time.perf_counter()` at each piece of text."""
    sample = Sample("Once upon a time, in a land far away, there lived", 12, count)
    options = Options("m", ignore_eos=True, extra={"temperature": 0})
    connection.sendall(target.request(request_body(BACKENDS["openai"], options, sample)))
    while data := connection.recv(65536):
        if b'"text":' in data:
            yield time.perf_counter()


def killed_engine(port: int, target: Target, server: subprocess.Popen[bytes]) -> float:
    """Kill the engine process during a stream. Returns seconds to the stream's next token."""
    killed = 0.0
    with socket.create_connection(("127.0.0.1", port), timeout=_LIMIT) as connection:
        for i, moment in enumerate(stream(connection, target, _LONG)):
            if i == _BEFORE:
                os.kill(engine_of(server.pid), signal.SIGKILL)
                killed = time.perf_counter()
                continue
            # Tokens already in flight arrive within a few milliseconds.
            if killed and moment - killed > 0.05:
                return moment - killed
    raise OSError("the stream ended before the engine's death was seen")


def engine_of(pid: int) -> int:
    """Pid of the server's engine core, found by its process title. Raises OSError."""
    for member in process.tree(pid):
        with contextlib.suppress(OSError):
            if b"EngineCore" in Path(f"/proc/{member}/cmdline").read_bytes():
                return member
    raise OSError("there is no engine process")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(server: subprocess.Popen[bytes]) -> None:
    """Terminate a server, and kill it after 20 s. (Background jobs of a shell ignore SIGINT.)"""
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def summary(cold: list[Start], warm: list[Start]) -> dict[str, Any]:
    """vLLM's fields (`avg_cold_startup_time` …; startup ends with the first token) and others."""
    result: dict[str, Any] = {}
    for phase, starts in (("cold", cold), ("warm", warm)):
        times = [start.first_token for start in starts]
        if times:
            result[f"avg_{phase}_startup_time"] = float(np.mean(times))
            result[f"{phase}_startup_times"] = times
            result[f"{phase}_startup_percentiles"] = percentiles(times)
            result[f"{phase}_listening_times"] = [start.listening for start in starts]
            result[f"{phase}_idle_memory_bytes"] = [start.idle_memory for start in starts]
    restarts = [start.restart for start in warm if start.restart is not None]
    if restarts:
        result["avg_engine_restart_time"] = float(np.mean(restarts))
        result["engine_restart_times"] = restarts
    return result


def table(cold: list[Start], warm: list[Start]) -> list[dict[str, Any]]:
    rows = []
    for phase, starts in (("cold", cold), ("warm", warm)):
        for i, start in enumerate(starts, 1):
            rows.append(
                {
                    "start": f"{phase} {i}",
                    "listening": start.listening,
                    "first token": start.first_token,
                    "killed engine to next token": start.restart,
                    "idle memory": start.idle_memory / 1e6,
                }
            )
    return rows
