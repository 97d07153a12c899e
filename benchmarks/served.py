"""Starts a `galley serve` process, monitors it and stops it cleanly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MODEL = "SmolLM2-135M-Instruct"
ROOT = Path(__file__).parents[1]
#: Enough for a few short sequences: CI machines often have little memory.
SMALL = ("--kv-cache-memory-bytes", "128M", "--max-model-len", "2048")
_SERVING = re.compile(r"serving at (https?)://([\d.]+):(\d+)")
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Server:
    """A running server process; `log` grows while it runs."""

    process: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, timeout: float = 30) -> str:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as reply:
            return str(reply.read().decode())

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as e:
            return e.code

    def metrics(self) -> Metrics:
        return Metrics(self.get("/metrics"))

    def pids(self) -> list[int]:
        """Pids of the launcher and all its descendants, from /proc."""
        pids = [self.process.pid]
        for pid in pids:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += [int(word) for word in children.read_text().split()]
        return pids

    def resident(self) -> float:
        """Anonymous and shared memory of all processes in MB, without mapped files."""
        total = 0
        for pid in self.pids():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+)", text, re.M)))
        return total / 1024

    def wait_idle(self, seconds: float = 60) -> Metrics:
        """Metrics once no request runs or waits, or after `seconds` in any case."""
        deadline = time.monotonic() + seconds
        while True:
            metrics = self.metrics()
            busy = metrics.sum("vllm:num_requests_running", "vllm:num_requests_waiting")
            if not busy or time.monotonic() > deadline:
                return metrics
            time.sleep(0.2)


class Metrics:
    """One scrape of /metrics."""

    def __init__(self, text: str) -> None:
        self.samples = [
            (name, dict(_LABEL.findall(labels)), float(value))
            for name, labels, value in _SAMPLE.findall(text)
        ]

    def sum(self, *names: str, **labels: str) -> float:
        """Sum of all samples with these names and labels."""
        return sum(
            value
            for name, have, value in self.samples
            if name in names and all(have.get(k) == v for k, v in labels.items())
        )

    def mean(self, histogram: str, since: Metrics | None = None) -> float:
        """Mean of the observations (since an earlier scrape); 0 if there are none."""
        total, count = self.sum(histogram + "_sum"), self.sum(histogram + "_count")
        if since is not None:
            total -= since.sum(histogram + "_sum")
            count -= since.sum(histogram + "_count")
        return total / count if count else 0.0

    def quantile(self, histogram: str, q: float, since: Metrics | None = None) -> float:
        """As Prometheus' histogram_quantile: linear inside the bucket."""
        counts: dict[float, float] = {}
        for sign, scrape in ((1, self), (-1, since)):
            for name, labels, value in scrape.samples if scrape else ():
                if name == histogram + "_bucket":
                    bound = float(labels["le"])
                    counts[bound] = counts.get(bound, 0.0) + sign * value
        edges = sorted(counts)
        if not edges or not counts[edges[-1]]:
            return 0.0
        rank = q * counts[edges[-1]]
        below, start = 0.0, 0.0
        for edge in edges:
            if counts[edge] >= rank:
                if edge == float("inf"):
                    return start
                inside = counts[edge] - below
                return start + (edge - start) * ((rank - below) / inside if inside else 1.0)
            below, start = counts[edge], edge
        return start


@contextmanager
def serve(
    *flags: str,
    env: dict[str, str] | None = None,
    without: tuple[str, ...] = (),
    program: Sequence[str] = ("-m", "galley"),
    verb: Sequence[str] = ("serve",),
    seconds: float = 120,
) -> Iterator[Server]:
    """Serve the built-in model on a free port of the loopback interface.

    Args:
        env: environment variables in addition to the caller's.
        without: name prefixes of the caller's variables to remove.
        program: Python arguments before the command; default: the galley package.
        verb: the command, `serve` or another that serves.

    Raises:
        RuntimeError: the server ended or was not ready in time; the message is its log.
    """
    command = [sys.executable, *program, *verb, "--host", "127.0.0.1", "--port", "0", *flags]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(without)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**inherited, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Server(process, 0)
    serving = threading.Event()
    reader = threading.Thread(target=_read, args=(server, serving), daemon=True)
    reader.start()
    try:
        if not serving.wait(seconds) or not server.port:
            raise RuntimeError("".join(server.log))
        # The API server may learn that its engine is ready slightly after the launcher.
        deadline = time.monotonic() + seconds
        while server.status("/health") != 200:
            if time.monotonic() > deadline:
                raise RuntimeError("".join(server.log))
            time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(10)


def _read(server: Server, serving: threading.Event) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.log.append(line)
        match = _SERVING.search(line)
        if match:
            server.port = int(match[3])
            serving.set()
    serving.set()
