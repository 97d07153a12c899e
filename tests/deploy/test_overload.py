"""A small server with too many clients: the metrics that operators watch say so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from benchmarks.clients import Answer, stream
from benchmarks.served import MODEL, Metrics, Server, serve
from tests.small_model import small_model

pytestmark = pytest.mark.alone

BUDGET, SLOTS, CLIENTS, OUTPUT = 64, 4, 10, 120
FLAGS = (
    *("--max-num-seqs", str(SLOTS), "--max-num-batched-tokens", str(BUDGET)),
    *("--num-gpu-blocks-override", "34", "--max-model-len", "512"),
)


@dataclass
class Run:
    answers: list[Answer]
    during: list[Metrics]
    after: Metrics
    server: Server


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with serve(str(small_model()), "--served-model-name", MODEL, *FLAGS) as server:

        async def ask(number: int) -> Answer:
            prompt = f"{number} " + "light and colours " * 15
            body = {"model": MODEL, "prompt": prompt, "max_tokens": OUTPUT, "ignore_eos": True}
            return await stream(server.port, body)

        async def all_at_once() -> tuple[list[Answer], list[Metrics]]:
            asked = asyncio.gather(*(ask(i) for i in range(CLIENTS)))
            during = []
            while not asked.done():
                await asyncio.sleep(0.02)
                during.append(await asyncio.to_thread(server.metrics))
            return await asked, during

        answers, during = asyncio.run(all_at_once())
        yield Run(answers, during, server.wait_idle(), server)


def test_the_queue_is_told(run: Run) -> None:
    """Checklist 188, 189: waiting > 0 with few slots, and its reasons add up to it."""
    waiting = [m.sum("vllm:num_requests_waiting") for m in run.during]
    assert max(waiting) >= CLIENTS - SLOTS - 1
    for metrics in run.during:
        reasons = metrics.sum("vllm:num_requests_waiting_by_reason")
        assert reasons == metrics.sum("vllm:num_requests_waiting")
    assert run.after.sum("vllm:num_requests_waiting") == 0


def test_the_full_cache_and_its_preemptions_are_told(run: Run) -> None:
    """Checklist 190, 191."""
    assert max(m.sum("vllm:kv_cache_usage_perc") for m in run.during) > 0.9
    assert run.after.sum("vllm:num_preemptions_total") > 0
    assert run.after.sum("vllm:kv_cache_usage_perc") == 0
    assert all(answer.finish == "length" for answer in run.answers)


def test_time_in_the_queue_is_told(run: Run) -> None:
    """Checklist 195: those that found no slot have waited for others to end."""
    name = "vllm:request_queue_time_seconds"
    assert run.after.sum(name + "_count") == CLIENTS
    longest = max(answer.ttft for answer in run.answers)
    assert 0 < run.after.mean(name) < longest


def test_a_step_keeps_to_its_budget(run: Run) -> None:
    """Checklist 200: no step computes more tokens than --max-num-batched-tokens."""
    name = "galley:step_tokens"
    within = run.after.sum(name + "_bucket", le=f"{BUDGET:.1f}")
    assert within == run.after.sum(name + "_count") > 0


def test_latencies_agree_with_the_clients(run: Run) -> None:
    """Checklist 205: a service level can be read from the histograms."""
    name = "vllm:time_to_first_token_seconds"
    told = run.after.mean(name)
    seen = sum(answer.ttft for answer in run.answers) / CLIENTS
    assert told == pytest.approx(seen, rel=0.5, abs=0.5)
    assert run.after.quantile(name, 0.99) >= run.after.quantile(name, 0.5) > 0
    assert run.server.status("/health") == 200


def test_prefix_hits_grow_by_whole_blocks(run: Run) -> None:
    """Checklist 196: the second identical prompt is found, up to its last full block."""
    server = run.server
    prompt = list(range(100, 150))
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 1}
    asyncio.run(stream(server.port, body))
    before = server.wait_idle()
    asyncio.run(stream(server.port, body))
    after = server.wait_idle()
    grown = {
        name: after.sum(f"vllm:prefix_cache_{name}_total")
        - before.sum(f"vllm:prefix_cache_{name}_total")
        for name in ("queries", "hits")
    }
    assert grown == {"queries": 50, "hits": 48}
