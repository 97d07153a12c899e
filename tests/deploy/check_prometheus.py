"""Dashboard and alerts in a real Prometheus that scrapes a real, overloaded server.

Not a part of the gate: `make check-deploy`. Durations are shortened, thresholds are not; promtool
tests the rules with their true durations.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.clients import stream
from benchmarks.served import MODEL, Server, serve
from tests.deploy.promql import DEPLOY, alert_queries, panel_queries
from tests.deploy.tools import free_port, get_json, run, wait_until

pytestmark = pytest.mark.timeout(900)
#: Four slots, and blocks for little more than two of the requests below.
OVERLOADED = ("--max-num-seqs", "4", "--num-gpu-blocks-override", "44", "--max-model-len", "512")
CLIENTS = 12
RULES = DEPLOY / "prometheus"


def shortened(folder: Path, *ports: int) -> Path:
    """The shipped configuration with seconds in place of minutes, and our servers' addresses.

    A scrape may take the whole interval: on a busy machine one second is too little.
    """
    config = yaml.safe_load((RULES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    [job] = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    rules = (RULES / "alerts.yml").read_text()
    rules = re.sub(r"for: \d+m", "for: 4s", rules)
    rules = re.sub(r"\[\d+[mh]\]", "[40s]", rules)
    (folder / "alerts.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


async def overload(server: Server, stop: threading.Event, short: threading.Event) -> None:
    """Until told to stop; a request that does not end well ends it at once.

    Requests that are not `short` are too long for four at once.
    """

    async def client(number: int) -> None:
        while not stop.is_set():
            body = {
                "model": MODEL,
                "prompt": f"{number} " + "light and colours " * 40,
                "max_tokens": 8 if short.is_set() else 160,
                "ignore_eos": True,
            }
            leave = 20 if number == 0 else None
            await stream(server.port, body, leave_after=leave)
            await stream(server.port, {**body, "max_tokens": -1})

    await asyncio.gather(*(client(i) for i in range(CLIENTS)))


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, text: str) -> list[dict[str, Any]]:
        found = get_json(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": text}))
        assert found["status"] == "success", found
        return list(found["data"]["result"])

    def fired(self) -> set[str]:
        """Alerts that fire or did."""
        found = self.query('last_over_time(ALERTS{alertstate="firing"}[1h])')
        return {series["metric"]["alertname"] for series in found}

    def scrapes(self) -> float:
        """Successful ones of the server that has most."""
        return max((float(s["value"][1]) for s in self.query("sum_over_time(up[1h])")), default=0)

    def wait_for(self, alerts: set[str], scrapes: int) -> None:
        """Until they have fired; a busy machine scrapes and evaluates late, so scrapes count."""
        last = self.scrapes() + scrapes
        while not alerts <= self.fired():
            assert self.scrapes() < last, f"{alerts - self.fired()} did not fire"
            time.sleep(1)


@pytest.fixture(scope="module")
def short() -> threading.Event:
    """Set: requests of the overload are short."""
    return threading.Event()


@pytest.fixture(scope="module")
def prometheus(
    short: threading.Event, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus after twenty scrapes of an overloaded server; the overload goes on."""
    folder = tmp_path_factory.mktemp("prometheus")
    stop = threading.Event()
    with serve(*OVERLOADED) as server:
        config = shortened(folder, server.port)
        port = free_port()
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        load = ThreadPoolExecutor(1).submit(lambda: asyncio.run(overload(server, stop, short)))
        try:
            found = Prometheus(f"http://127.0.0.1:{port}")
            wait_until(lambda: found.scrapes() >= 20, 300, "twenty scrapes")
            yield found
        finally:
            stop.set()
            process.terminate()
            process.wait(20)
            load.result(300)  # the requests that are under way
            assert not [line for line in server.log if "ERROR" in line]


def in_seconds(query: str) -> str:
    """A panel's query as Grafana would send it with all variables at All."""
    query = re.sub(r"\$(job|instance|model_name|engine)\b", ".*", query)
    return query.replace("$__rate_interval", "40s").replace("[1h]", "[40s]")


@pytest.mark.parametrize(("title", "query"), panel_queries(), ids=[t for t, _ in panel_queries()])
def test_every_panel_has_data(prometheus: Prometheus, title: str, query: str) -> None:
    """Checklist 206, 208, 209."""
    series = prometheus.query(in_seconds(query))
    assert series
    assert all(s["value"][1] not in ("NaN", "+Inf") for s in series), series


@pytest.mark.parametrize(("name", "query"), alert_queries(), ids=[n for n, _ in alert_queries()])
def test_every_alert_has_data(prometheus: Prometheus, name: str, query: str) -> None:
    """With `bool` a comparison yields 0 or 1 for each series, whether it holds or not.

    The one series that a healthy server has not yet is stood in for by its sister.
    """
    query = re.sub(r"\[\d+[mh]\]", "[40s]", query).replace('status="5xx"', 'status="4xx"')
    asked = re.sub(r"(>=|==|>|<)(?= )", r"\1 bool", query)
    assert prometheus.query(asked), asked


def test_an_overload_is_told(prometheus: Prometheus, short: threading.Event) -> None:
    """Checklist 207: KV, queue and preemption alerts fire; those of errors do not.

    Where the KV cache is full fewer run than could; at capacity are those that it has room for.
    """
    prometheus.wait_for({"GalleyKVCacheFull", "GalleyPreemptions", "GalleyRequestsWaiting"}, 100)
    short.set()
    prometheus.wait_for({"GalleyAtCapacity"}, 100)
    seen = prometheus.fired()
    assert not seen & {"GalleyDown", "GalleyEngineRestarts", "GalleyServerErrors"}
    assert not seen & {"GalleyRequestErrors", "GalleyRequestsRejected"}


def test_rules_and_configuration_load() -> None:
    run("promtool", "check", "rules", "alerts.yml", cwd=RULES)
    run("promtool", "check", "config", "prometheus.yml", cwd=RULES)
    run("promtool", "test", "rules", "alerts_test.yml", cwd=RULES)
