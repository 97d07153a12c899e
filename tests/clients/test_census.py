"""Metrics and routes of a real server with everything switched on, under load, row by row against
vLLM's (checklist 182, 186).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import tiny
from benchmarks.clients import stream
from benchmarks.served import ROOT, Server, serve

LENGTH, STEP = 512, 96
METRICS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vllm_metrics.json").read_text()
)
ROUTES: list[dict[str, Any]] = json.loads(
    (ROOT / "docs" / "generate" / "vllm" / "routes.json").read_text()
)["routes"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("census")
    profiler = json.dumps({"profiler": "torch", "torch_profiler_dir": str(folder)})
    flags = (
        *tiny.flags(folder, LENGTH),
        *("--max-num-batched-tokens", str(STEP), "--max-num-seqs", "8"),
        *("--num-gpu-blocks-override", "40", "--kv-cache-metrics", "--enable-mfu-metrics"),
        *("--kv-cache-metrics-sample", "1.0", "--max-num-queued-reqs", "64"),
        *("--enable-tokenizer-info-endpoint", "--profiler-config", profiler),
        "--enable-scale-out",
    )
    with serve(*flags, env={"VLLM_SERVER_DEV_MODE": "1"}) as server:
        yield server


@pytest.fixture(scope="module")
def families(server: Server) -> dict[str, Metric]:
    """By name, of a scrape while requests are under way, after others have ended."""

    async def load() -> str:
        body = {"model": tiny.NAME, "max_tokens": 48, "ignore_eos": True}
        words = "Once more the light falls on white paper. " * 6
        streams = [
            asyncio.ensure_future(stream(server.port, {**body, "prompt": f"{i % 12} {words}"}))
            for i in range(48)
        ]
        await asyncio.wait(streams, return_when=asyncio.FIRST_COMPLETED)
        async with httpx.AsyncClient() as client:
            text = (await client.get(server.url + "/metrics")).text
        answers = await asyncio.gather(*streams)
        assert all(answer.finish == "length" for answer in answers)
        return text

    httpx.post(server.url + "/sleep?level=1", timeout=30)
    httpx.post(server.url + "/wake_up", timeout=30)
    text = asyncio.run(load())
    assert 'num_requests_running{engine="0",model_name="tiny"} 0.0' not in text
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize("row", METRICS, ids=[row["name"] for row in METRICS])
def test_metric(row: dict[str, Any], families: dict[str, Metric]) -> None:
    """Checklist 186: name, type, labels and their values, buckets."""
    exposed = row["exposed_as"].partition("{")[0]
    family = families.get(exposed.removesuffix("_total")) or families.get(exposed)
    assert family is not None, f"{exposed} is not exposed"
    assert family.type == row["type"]
    samples = [s for s in family.samples if not s.name.endswith("_created")]
    for sample in samples:
        assert sample.labels.keys() - {"le"} == set(row["labels"]) or "info" in row["name"]
    if row["type"] == "counter":
        assert all(s.name == exposed.removesuffix("_total") + "_total" for s in samples)
    for label, values in row.get("label_values", {}).items():
        assert {s.labels[label] for s in samples} == set(values)
    if "buckets" in row:
        told = {float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")}
        assert told, "nothing was observed"
        assert sorted(told - {float("inf")}) == buckets(row)


def buckets(row: dict[str, Any]) -> list[float]:
    """vLLM's; those of a request's tokens end with the model's length."""
    of_length = "buckets_note" in row and row["name"].startswith("vllm:request_")
    return [float(edge) for edge in row["buckets"] if not of_length or edge <= LENGTH]


def test_no_metric_is_called_like_vllms_and_is_none(families: dict[str, Metric]) -> None:
    """Checklist 186: whatever begins with `vllm:` is in vLLM's list."""
    known = json.loads((ROOT / "docs" / "generate" / "vllm" / "metrics.json").read_text())
    names = {row["name"] for row in known["metrics"]}
    ours = {n.removesuffix("_created") for n in families if n.startswith("vllm:")}
    assert ours <= names


def page_verdicts() -> dict[str, str]:
    page = (ROOT / "docs" / "compatibility" / "routes.md").read_text()
    return dict(re.findall(r"^\| `(.+?)` \| (works|no effect|refused|not yet) ", page, re.M))


def described_by(server: Server) -> set[str]:
    """Its routes: method and path, with {} for parameters."""
    document = json.loads(server.get("/openapi.json"))
    return {
        re.sub(r"\{\w+\}", "{}", f"{method.upper()} {path}")
        for path, operations in document["paths"].items()
        for method in operations
    }


def test_every_route_is_there_or_explained(server: Server, tmp_path: Path) -> None:
    """Checklist 182: what docs/compatibility/routes.md says works, answers; nothing else does."""
    flags = (*tiny.flags(tmp_path, LENGTH), "--runner", "pooling", "--enable-lora")
    with serve(*flags, env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}) as pooling:
        described = described_by(server) | described_by(pooling)
    verdicts = page_verdicts()
    undescribed = ("/docs", "/redoc", "/openapi.json", "/static", "/metrics")
    for row in ROUTES:
        name = f"{row['method']} {row['path']}"
        if row["path"].startswith(undescribed) or row["method"] == "WEBSOCKET":
            continue
        there = re.sub(r"\{\w+\}", "{}", name) in described
        works = verdicts[name] == "works"
        assert there == works, f"{name}: described {there}, the page says {verdicts[name]}"
