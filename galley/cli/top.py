"""`galley top`: what servers do now: requests, cache, rates and latencies, second by second.

Reads `/metrics`, so it also shows servers of vLLM. A figure is of the last interval: a rate is the
difference of a counter, a latency the mean of what a histogram has gained.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from galley.cli.parser import CommandParser, make
from galley.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT_URL = "http://localhost:8000"
#: Seconds within which a server has to answer.
TIMEOUT = 5.0
_MISSING = "–"
_BARS = " ▁▂▃▄▅▆▇█"
#: Intervals that the curve of a server shows.
_HISTORY = 30

#: Values by metric, over all engines and labels.
Sample = dict[str, float]


@dataclass(frozen=True)
class TopFlags:
    """Options"""

    interval: float = 1.0
    """Seconds between two readings."""
    once: bool = False
    """Print one table, of one interval, and end. So it does where the output is no terminal."""
    api_key: str | None = None
    """Key of the servers. Default: $OPENAI_API_KEY."""


@dataclass
class Server:
    """A server's last two readings, or why there are none."""

    url: str
    now: Sample
    before: Sample
    seconds: float = 0.0
    error: str = "not read yet"
    read_at: float = 0.0
    history: tuple[float, ...] = ()

    def update(self, sample: Sample | str, now: float) -> None:
        """A reading, or the error instead of one."""
        if isinstance(sample, str):
            self.error, self.now, self.before = sample, {}, {}
            return
        self.before, self.now = self.now, sample
        self.error, self.seconds, self.read_at = "", now - self.read_at, now
        rate = self.rate("vllm:generation_tokens_total")
        if rate is not None:
            self.history = (*self.history, rate)[-_HISTORY:]

    def gain(self, name: str) -> float | None:
        """How much a counter has gained in the interval. None without two readings; a counter that
        a restart has set back begins at 0.
        """
        if name not in self.now or name not in self.before:
            return None
        gained = self.now[name] - self.before[name]
        return gained if gained >= 0 else self.now[name]

    def rate(self, name: str) -> float | None:
        gained = self.gain(name)
        return None if gained is None else gained / self.seconds

    def ratio(self, part: str, whole: str) -> float | None:
        """Of two counters' gains; None where `whole` has gained nothing."""
        parts, wholes = self.gain(part), self.gain(whole)
        return parts / wholes if parts is not None and wholes else None

    def mean(self, histogram: str) -> float | None:
        return self.ratio(f"{histogram}_sum", f"{histogram}_count")


def parser() -> CommandParser:
    return CommandParser(
        "top",
        "Show what servers do, second by second: requests, cache, rates, latencies. Ctrl-C ends.",
        [TopFlags],
        positionals=(("URL…", f"servers; {DEFAULT_URL} without any"),),
        examples=(
            "galley top",
            "galley top http://host-a:8000 http://host-b:8000 --interval 5",
            "galley top --once",
        ),
    )


def main(argv: list[str]) -> int:
    reader = parser()
    parsed = reader.parse(argv)
    flags = make(TopFlags, reader.split(parsed.values))
    if not 0.05 <= flags.interval <= 3600:
        raise ConfigError(f"--interval must be in 0.05 … 3600 seconds, got {flags.interval:g}.")
    urls = [_base(url) for url in parsed.positionals or [DEFAULT_URL]]
    servers = [Server(url, {}, {}) for url in urls]
    key = flags.api_key or os.environ.get("OPENAI_API_KEY")
    try:
        if flags.once or not sys.stdout.isatty():
            return _once(servers, flags.interval, key)
        return _watch(servers, flags.interval, key)
    except KeyboardInterrupt:
        return 0


def _base(url: str) -> str:
    """The address of a server, without the path of an API."""
    address = url if "://" in url else f"http://{url}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"URL must begin with http:// or https://, got {url!r}.")
    return address.rstrip("/").removesuffix("/metrics").removesuffix("/v1")


def _once(servers: list[Server], interval: float, key: str | None) -> int:
    from rich.console import Console

    read(servers, key)
    time.sleep(interval)
    read(servers, key)
    Console(width=None if sys.stdout.isatty() else 120).print(table(servers))
    return int(any(server.error for server in servers))


def _watch(servers: list[Server], interval: float, key: str | None) -> int:
    from rich.live import Live

    read(servers, key)
    with Live(table(servers), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            read(servers, key)
            live.update(table(servers), refresh=True)


def read(servers: list[Server], key: str | None) -> None:
    """Read all servers at once."""
    with ThreadPoolExecutor(len(servers)) as threads:
        samples = list(threads.map(lambda server: fetch(server.url, key), servers))
    now = time.monotonic()
    for server, sample in zip(servers, samples, strict=True):
        server.update(sample, now)


def fetch(url: str, key: str | None) -> Sample | str:
    """A server's metrics, or why there are none, in a few words."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        request = urllib.request.Request(f"{url}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            text = answer.read().decode()
        return parse(text)
    except urllib.error.HTTPError as error:
        return f"/metrics answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def parse(text: str) -> Sample:
    """Values by name, summed over labels; of a share the largest.

    Raises:
        ValueError: it is not Prometheus' text format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    values: Sample = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            known = values.get(sample.name, 0.0)
            if sample.name.endswith("_perc"):
                values[sample.name] = max(known, sample.value)
            else:
                values[sample.name] = known + sample.value
    if not any(name.startswith("vllm:") for name in values):
        raise ValueError("its metrics are not those of an inference server")
    return values


def table(servers: Sequence[Server]) -> RenderableType:
    """One column a server."""
    from rich.table import Table
    from rich.text import Text

    shown = Table("", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for server in servers:
        shown.add_column(server.url, justify="right", min_width=12)
    for name, cell in CELLS.items():
        shown.add_row(name, *("" if server.error else cell(server) for server in servers))
    if any(server.error for server in servers):
        shown.add_row("error", *(Text(server.error, style="red") for server in servers))
    return shown


def curve(values: tuple[float, ...]) -> str:
    """Bars of the last values, the largest of them full."""
    most = max(values, default=0.0) or 1.0
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] for value in values)


def _count(name: str, server: Server) -> str:
    return f"{server.now[name]:,.0f}" if name in server.now else _MISSING


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 0) -> str:
    return _MISSING if value is None else f"{value:,.{digits}f}"


def _milliseconds(value: float | None) -> str:
    return _MISSING if value is None else f"{value * 1e3:,.0f}"


#: The name of a row → the cell of a server.
CELLS: dict[str, Callable[[Server], str]] = {
    "running": lambda s: _count("vllm:num_requests_running", s),
    "waiting": lambda s: _count("vllm:num_requests_waiting", s),
    "KV cache": lambda s: _percent(s.now.get("vllm:kv_cache_usage_perc")),
    "prefix hits": lambda s: _percent(
        s.ratio("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total")
    ),
    "prompt tok/s": lambda s: _number(s.rate("vllm:prompt_tokens_total")),
    "output tok/s": lambda s: _number(s.rate("vllm:generation_tokens_total")),
    "tokens/step": lambda s: _number(s.mean("galley:step_tokens"), 1),
    "TTFT, ms": lambda s: _milliseconds(s.mean("vllm:time_to_first_token_seconds")),
    "ITL, ms": lambda s: _milliseconds(s.mean("vllm:inter_token_latency_seconds")),
    "preempted": lambda s: _number(s.gain("vllm:num_preemptions_total")),
    "restarts": lambda s: _count("galley:engine_restarts_total", s),
    "output, lately": lambda s: curve(s.history),
}
