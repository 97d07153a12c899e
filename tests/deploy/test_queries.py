"""Dashboard and alerts against the metrics of a running server: every name and label exists."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.clients import stream
from benchmarks.served import MODEL, SMALL, Metrics, serve
from tests.deploy.promql import ADDED, DEPLOY, alert_queries, alerts, panel_queries, panels, parse

QUERIES = [*panel_queries(), *alert_queries()]
#: Labels whose values are fixed from the start, so that a value in a query must be one of them.
FIXED = {"finished_reason", "reason", "source", "sleep_state"}


@pytest.fixture(scope="module")
def live() -> Iterator[Metrics]:
    """The metrics of a server after one good request and one bad one."""
    with serve(*SMALL) as server:
        for max_tokens in (4, -1):
            body = {"model": MODEL, "prompt": "Light", "max_tokens": max_tokens}
            asyncio.run(stream(server.port, body))
        yield server.wait_idle()


@pytest.mark.parametrize(("title", "text"), QUERIES, ids=[title for title, _ in QUERIES])
def test_every_metric_and_label_exists(live: Metrics, title: str, text: str) -> None:
    query = parse(text)
    assert query.selectors
    known: set[str] = set(ADDED)
    for metric, matchers in query.selectors:
        if metric == "up":
            continue
        series = [labels for name, labels, _ in live.samples if name == metric]
        assert series, f"{metric} is not exposed"
        labels = set().union(*series)
        known |= labels
        for label, operator, value in matchers:
            assert label in labels | ADDED, f"{metric} has no label {label}"
            if label in FIXED and operator in ("=", "=~"):
                values = {s[label] for s in series}
                assert set(value.split("|")) <= values, f"{metric} has no {label} {value}"
    assert query.grouped <= known


def test_parse_finds_what_a_query_names() -> None:
    query = parse('sum by (le, b) (rate(a:x_bucket{c="1|2", d=~"$v"}[5m])) / f > 0 and on (g) h')
    assert [name for name, _ in query.selectors] == ["a:x_bucket", "f", "h"]
    assert query.selectors[0][1] == (("c", "=", "1|2"), ("d", "=~", "$v"))
    assert query.grouped == {"le", "b", "g"}


def test_the_dashboard_is_made_from_its_table() -> None:
    made = subprocess.run(
        [sys.executable, DEPLOY / "grafana" / "dashboard.py"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert made == (DEPLOY / "grafana" / "galley.json").read_text()


def test_the_dashboard_has_the_four_rows() -> None:
    """Checklist 206, 208, 209."""
    board = json.loads((DEPLOY / "grafana" / "galley.json").read_text())
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert {"Throughput", "Latency", "Memory and cache", "Queue"} <= set(rows)
    boxes = [panel["gridPos"] for panel in board["panels"]]
    cells = [
        (x, y)
        for box in boxes
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert all(x < 24 for x, _ in cells)
    text = "".join(query for _, query in panel_queries())
    for metric in ("time_to_first_token", "inter_token_latency", "e2e_request_latency"):
        assert f"histogram_quantile(0.99, sum by (le) (rate(vllm:{metric}_seconds_bucket" in text
    assert "rate(vllm:num_preemptions_total" in text
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_alerts_cover_what_operators_watch() -> None:
    """Checklist 207: ceiling, queue, KV, preemptions, latencies, hit ratio, success rate."""
    text = "".join(query for _, query in alert_queries())
    for metric in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc > 0.9",
        "num_preemptions_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket",
        "prefix_cache_hits_total",
        'request_success_total{finished_reason="error"}',
    ):
        assert metric in text
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
